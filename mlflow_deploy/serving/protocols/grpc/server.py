"""The gRPC server of one worker: the core calls of the Open Inference Protocol, raw and typed contents."""

from __future__ import annotations

import itertools
import json
import os
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from pathlib import Path
from time import perf_counter
from typing import Any

import mlflow_deploy
from mlflow_deploy.errors import ConfigError, MissingExtra
from mlflow_deploy.serving import tensors
from mlflow_deploy.serving.auth import Guard
from mlflow_deploy.serving.errors import BadRequest, InvalidValue, ModelFailed, RequestError, UnknownPath
from mlflow_deploy.serving.http import JSON, not_ready
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.metrics import PROTOCOLS
from mlflow_deploy.serving.protocols.grpc.messages import METHODS, SERVICE, messages
from mlflow_deploy.serving.protocols.oip import metadata
from mlflow_deploy.serving.recorder import MAX_REQUEST_BYTES, Record, kind
from mlflow_deploy.serving.tuning import concurrency
from mlflow_deploy.serving.values import Array
from mlflow_deploy.serving.worker import Clock, Worker

_PROTOCOL = PROTOCOLS.index("oip_grpc")
# HTTP status -> name of gRPC's status
_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED", 415: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def start(worker: Worker, host: str, port: int, guard: Guard | None) -> Any:
    """Bind the port and serve in the background.

    Raises:
        MissingExtra: grpcio or protobuf is not installed.
        ConfigError: the port cannot be bound.
    """
    try:
        import grpc

        messages()
    except ImportError as error:
        raise MissingExtra("gRPC", "grpc", missing=error.name or "grpcio") from error
    settings = worker.settings
    server = grpc.server(
        ThreadPoolExecutor(concurrency(settings) + settings.queue_size, thread_name_prefix="grpc"),
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
        ],
    )
    server.add_generic_rpc_handlers((_handlers(grpc, Service(worker, guard)),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if settings.tls_cert:
            server.add_secure_port(address, _credentials(grpc, settings))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"gRPC cannot bind {address}", why=str(error), hint="Set serving.grpc_port"
        ) from error
    server.start()
    # The workers end by multiprocessing's own exit, which knows nothing of other hooks.
    util.Finalize(server, lambda: server.stop(settings.drain_seconds).wait(), exitpriority=20)
    return server


def _credentials(grpc: Any, settings: Any) -> Any:
    ca = Path(settings.tls_client_ca).read_bytes() if settings.tls_client_ca else None
    pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def _handlers(grpc: Any, service: Service) -> Any:
    known = messages()
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                service.answering(name),
                request_deserializer=known[f"{name}Request"].FromString,
                response_serializer=known[f"{name}Response"].SerializeToString,
            )
            for name in METHODS
        },
    )


class Service:
    """The calls of the protocol on a worker's model."""

    def __init__(self, worker: Worker, guard: Guard | None) -> None:
        self._worker = worker
        self._guard = guard
        source = worker.bundle.manifest.model
        self._names = tensors.names(worker.config.deployment, source.name)
        self._version = source.version or "1"
        self._new = messages()
        self._prefix = f"{os.getpid():x}-{random.getrandbits(40):010x}-g"
        self._counter = itertools.count(1)

    def answering(self, name: str) -> Callable[[Any, Any], Any]:
        """The function for a method, which counts, checks the token and words errors."""
        import grpc

        handler = getattr(self, name)

        def answer(request: Any, context: Any) -> Any:
            clock = Clock()
            status, response = 200, None
            try:
                if self._guard is not None and name == "ModelInfer":
                    self._guard.check(dict(context.invocation_metadata()).get("authorization"), "predict")
                response = handler(request, clock)
                return response
            except Exception as error:  # noqa: BLE001 - whatever a model raises becomes a status and a log line
                known = error if isinstance(error, RequestError) else ModelFailed()
                status = known.status
                _log(name, error, known, dict(context.invocation_metadata()))
                context.abort(getattr(grpc.StatusCode, _CODES[status]), known.text)
            finally:
                ended = perf_counter()
                self._worker.metrics.answered(_PROTOCOL, status, clock.arrived, ended, clock.call)
                if self._worker.capture is not None and name == "ModelInfer":
                    given = self._id(request, context)
                    self._worker.capture.put(given, clock.arrived, ended - clock.arrived, status, clock.call)
                if self._worker.tracing is not None and name == "ModelInfer":
                    self._trace(request, context, status, clock, ended)
                if self._worker.recorder.on and name == "ModelInfer":
                    sent = dict(context.invocation_metadata())
                    self._record(request, response, sent, status, ended - clock.arrived)

        return answer

    def _trace(self, request: Any, context: Any, status: int, clock: Clock, ended: float) -> None:
        assert self._worker.tracing is not None
        sent = {key: str(value) for key, value in context.invocation_metadata()}
        self._worker.tracing.answered(
            f"{SERVICE}/ModelInfer",
            {
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": "ModelInfer",
                "mlflow_deploy.request_id": sent.get("x-request-id") or request.id,
            },
            {key: sent.get(key) for key in ("traceparent", "tracestate")},
            status=status,
            arrived=clock.arrived,
            ended=ended,
            call=clock.call,
        )

    def _id(self, request: Any, context: Any) -> str:
        """The id of a request: the one of HTTP, or the protocol's own, or one of ours."""
        sent = str(dict(context.invocation_metadata()).get("x-request-id", ""))
        return sent or request.id or f"{self._prefix}{next(self._counter):x}"

    def ServerLive(self, request: Any, clock: Clock) -> Any:  # noqa: N802 - the protocol's names
        """The process answers."""
        return self._new["ServerLiveResponse"](live=True)

    def ServerReady(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """The model is loaded."""
        return self._new["ServerReadyResponse"](ready=self._worker.ready)

    def ModelReady(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """This model is loaded."""
        self._known(request.name, request.version)
        return self._new["ModelReadyResponse"](ready=self._worker.ready)

    def ServerMetadata(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """Name and version of the server."""
        return self._new["ServerMetadataResponse"](name="mlflow_deploy", version=mlflow_deploy.__version__)

    def ModelMetadata(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """Inputs and outputs of the model."""
        self._known(request.name, request.version)
        return self._new["ModelMetadataResponse"](**metadata(self._worker, self._names[0], self._version))

    def RepositoryIndex(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """The one model of this server."""
        model = {"name": self._names[0], "version": self._version}
        state = "READY" if self._worker.ready else "UNAVAILABLE"
        return self._new["RepositoryIndexResponse"](models=[{**model, "state": state}])

    def ModelInfer(self, request: Any, clock: Clock) -> Any:  # noqa: N802
        """Predictions."""
        self._known(request.model_name, request.model_version)
        worker = self._worker
        plane = worker.plane
        if plane is None or worker.metrics.shared.draining:
            raise not_ready(worker)
        parameters = {key: _parameter(value) for key, value in request.parameters.items()}
        arrays = plane.inputs.match(_arrays(request.inputs, request.raw_input_contents))
        result = plane.model.to_tensors(plane.predict(plane.model.parse_tensors(arrays, parameters), clock))
        return self._response(request, tensors.select(result, [output.name for output in request.outputs]))

    def _record(self, request: Any, response: Any, sent: dict[str, Any], status: int, seconds: float) -> None:
        """Record a call as the same call over HTTP would be."""
        recorder = self._worker.recorder
        request_id = str(sent.get("x-request-id", ""))
        if not recorder.takes(request_id):
            return
        answer = b"{}"
        if response is not None:
            answer = _document("outputs", _arrays(response.outputs, response.raw_output_contents))
        try:
            asked = _document("inputs", _arrays(request.inputs, request.raw_input_contents))
        except RequestError:
            asked = b"{}"  # It was refused for the same reason.
        recorder.put(
            Record(
                number=0,
                id=request_id,
                path=f"/{SERVICE}/ModelInfer",
                status=status,
                seconds=seconds,
                digest=zlib.crc32(request.SerializeToString(deterministic=True)),
                request=asked if len(asked) <= MAX_REQUEST_BYTES else b"",
                request_type=kind(JSON, None),
                answer=answer,
                answer_type=kind(JSON, None),
            )
        )

    def _known(self, name: str, version: str) -> None:
        if name not in self._names or version not in ("", self._version):
            raise UnknownPath(
                "There is no such model or version",
                hint=f"The model is called {self._names[0]}, its version is {self._version}",
            )

    def _response(self, request: Any, outputs: list[tuple[str, Array]]) -> Any:
        response = self._new["ModelInferResponse"](
            model_name=self._names[0], model_version=self._version, id=request.id
        )
        # A caller that sent typed contents gets typed contents; half floats have no typed form.
        raw = bool(request.raw_input_contents) or any(array.dtype.str.endswith("f2") for _, array in outputs)
        for name, array in outputs:
            kind = tensors.datatype(array.dtype)
            output = response.outputs.add(name=name, datatype=kind, shape=array.shape)
            if raw:
                response.raw_output_contents.append(tensors.to_binary(array))
            else:
                values = tensors.to_json(array)
                typed = [value.encode() for value in values] if kind == "BYTES" else values
                getattr(output.contents, _CONTENTS[kind]).extend(typed)
        return response


def _log(method: str, error: Exception, known: RequestError, metadata: dict[str, Any]) -> None:
    """The whole story of a refused call, under the caller's request id and trace."""
    fields = {"method": method, "status": known.status, "error": known.text}
    for key, field in (("x-request-id", "request_id"), ("traceparent", "traceparent")):
        if key in metadata:
            fields[field] = str(metadata[key])[:128]
    if known is error:
        logger().warning("request refused", extra={"fields": fields})
    else:
        logger().error("the model failed", exc_info=error, extra={"fields": fields})


def _parameter(value: Any) -> Any:
    choice = value.WhichOneof("parameter_choice")
    return getattr(value, choice) if choice else None


def _document(name: str, arrays: list[tuple[str, Array]]) -> bytes:
    """Tensors as JSON of the Open Inference Protocol over HTTP."""
    described = [
        {
            "name": each,
            "datatype": tensors.datatype(array.dtype),
            "shape": list(array.shape),
            "data": tensors.to_json(array),
        }
        for each, array in arrays
    ]
    return json.dumps({name: described}).encode()


def _arrays(items: Any, raw: Any) -> list[tuple[str, Array]]:
    """The tensors of a request or an answer, whose values are `raw` or in the items themselves."""
    if raw and len(raw) != len(items):
        raise BadRequest("raw_input_contents must have one part for each input")
    arrays = []
    for at, item in enumerate(items):
        shape = list(item.shape)
        if raw:
            array = tensors.from_binary(item.name, item.datatype, shape, raw[at])
        else:
            array = tensors.from_json(item.name, item.datatype, shape, _contents(item))
        arrays.append((item.name, array))
    return arrays


def _contents(item: Any) -> list[Any]:
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise InvalidValue(f"Input {item.name!r} has a datatype that typed contents do not have")
    values = list(getattr(item.contents, field))
    if field != "bytes_contents":
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidValue(f"Input {item.name!r} holds text that is not UTF-8") from error
