"""The Open Inference Protocol v2 over HTTP, with its binary tensor extension and compression."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

import mlflow_deploy
from mlflow_deploy.serving import tensors
from mlflow_deploy.serving.bodies import decode_document
from mlflow_deploy.serving.errors import BadRequest, InvalidValue, RequestError, UnknownPath
from mlflow_deploy.serving.http import JSON, Request, Response, Route, not_ready
from mlflow_deploy.serving.values import Array
from mlflow_deploy.serving.worker import Worker

_BINARY = "application/octet-stream"
_HEADER_LENGTH = "HTTP_INFERENCE_HEADER_CONTENT_LENGTH"
_COMPRESS_FROM = 1024  # bytes; below, compression makes answers slower and hardly smaller


class Input(msgspec.Struct):
    """One input of a request."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None


class WantedOutput(msgspec.Struct):
    """One output that the request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON head of an infer request."""

    inputs: list[Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[WantedOutput] = []


class OutputTensor(msgspec.Struct):
    """One output of an answer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class InferResponse(msgspec.Struct):
    """The JSON head of an answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | msgspec.UnsetType = msgspec.UNSET


_NONE: dict[str, Any] = {}
_decode = msgspec.json.Decoder(InferRequest).decode


def oip_error(error: RequestError) -> bytes:
    """The error as {"error"}."""
    return msgspec.json.encode({"error": error.text})


def routes(worker: Worker) -> tuple[dict[str, Route], list[tuple[str, Route]]]:
    """The routes by path, and the one for all other paths under /v2."""
    handlers = _Handlers(worker)

    def route(method: str, handler: Any, scope: str = "") -> Route:
        return Route(method, handler, protocol="oip_http", scope=scope, error_body=oip_error)

    table = {
        "/v2": route("GET", handlers.server),
        "/v2/": route("GET", handlers.server),
        "/v2/health/live": route("GET", handlers.live),
        "/v2/health/ready": route("GET", handlers.ready),
        "/v2/models": route("GET", handlers.models),
        "/v2/repository/index": route("POST", handlers.index),
    }
    for path in handlers.paths():
        table[path] = route("GET", handlers.model)
        table[f"{path}/ready"] = route("GET", handlers.ready)
        table[f"{path}/infer"] = route("POST", handlers.infer, "predict")
    return table, [("/v2/", route("", handlers.unknown))]


class _Handlers:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        source = worker.bundle.manifest.model
        self._names = tensors.names(worker.config.deployment, source.name)
        self._version = source.version or "1"

    def paths(self) -> list[str]:
        plain = [f"/v2/models/{name}" for name in self._names]
        return [*plain, *(f"{path}/versions/{self._version}" for path in plain)]

    # --- what the server and the model are -----------------------------------------------------------------

    def server(self, _: Request) -> Response:
        return _json(
            {
                "name": "mlflow_deploy",
                "version": mlflow_deploy.__version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    def live(self, _: Request) -> Response:
        return _json({"live": True})

    def ready(self, _: Request) -> Response:
        if not self._worker.ready:
            raise not_ready(self._worker)
        return _json({"ready": True})

    def models(self, _: Request) -> Response:
        return _json({"models": [self._names[0]]})

    def index(self, _: Request) -> Response:
        state = "READY" if self._worker.ready else "UNAVAILABLE"
        return _json([{"name": self._names[0], "version": self._version, "state": state, "reason": ""}])

    def model(self, _: Request) -> Response:
        return _json(metadata(self._worker, self._names[0], self._version))

    def unknown(self, _: Request) -> Response:
        raise UnknownPath(
            "There is no such model, version or address",
            hint=f"The model is called {self._names[0]}, its version is {self._version}",
        )

    # --- inference -----------------------------------------------------------------------------------------

    def infer(self, request: Request) -> Response | None:
        worker = self._worker
        plane = worker.plane
        if plane is None or worker.metrics.shared.draining:
            raise not_ready(worker)
        head, binary = _split_body(request)
        query = _parse(head)
        arrays = plane.inputs.match(_inputs(query.inputs, binary))
        call = plane.model.parse_tensors(arrays, query.parameters)

        def finish(result: Any) -> Response:
            named = plane.model.to_tensors(result)
            return self._answer(
                query, tensors.select(named, [output.name for output in query.outputs]), request
            )

        if request.resume is not None and plane.collect(call, request, finish, request.resume):
            return None
        return finish(plane.predict(call, request))

    def _answer(self, query: InferRequest, result: Sequence[tuple[str, Array]], request: Request) -> Response:
        all_binary = query.parameters.get("binary_data_output") is True
        asked = {output.name: output.parameters for output in query.outputs}
        described: list[OutputTensor] = []
        blobs: list[bytes] = []
        for name, array in result:
            output = OutputTensor(name, tensors.datatype(array.dtype), array.shape)
            parameters = asked.get(name, _NONE)
            if "classification" in parameters:
                raise InvalidValue("This server does not have the classification extension")
            if parameters.get("binary_data", all_binary) is True:
                blob = tensors.to_binary(array)
                output.parameters = {"binary_data_size": len(blob)}
                blobs.append(blob)
            else:
                output.data = tensors.to_json(array)
            described.append(output)
        answer = InferResponse(self._names[0], self._version, described, query.id or msgspec.UNSET)
        return _compressed(_encode(answer), blobs, request)


def metadata(worker: Worker, name: str, version: str) -> dict[str, Any]:
    """The model's metadata.

    Raises:
        NotReady: the model is loading.
    """
    if worker.plane is None:
        raise not_ready(worker)
    model = worker.plane.model

    def described(infos: Any) -> list[dict[str, Any]]:
        return [
            {"name": i.name, "datatype": tensors.datatype(i.dtype), "shape": list(i.shape)} for i in infos
        ]

    return {
        "name": name,
        "versions": [version],
        "platform": f"mlflow_{worker.bundle.manifest.format}",
        "inputs": described(model.inputs),
        "outputs": described(model.outputs),
    }


def _split_body(request: Request) -> tuple[bytes, memoryview]:
    """The JSON head and the binary data after it."""
    body = request.body()
    length = request.environ.get(_HEADER_LENGTH)
    if length is None:
        return body, memoryview(b"")
    if not length.isdecimal() or len(length) > 15 or int(length) > len(body):
        raise BadRequest("Inference-Header-Content-Length must be the length of the JSON at the body's begin")
    return body[: int(length)], memoryview(body)[int(length) :]


def _parse(head: bytes) -> InferRequest:
    try:
        return _decode(head)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # NaN and Infinity are no JSON, but Python's clients send them.
        document = decode_document(head)
    try:
        return msgspec.convert(document, InferRequest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest("The body is not an infer request of the Open Inference Protocol") from error


def _inputs(inputs: Sequence[Input], binary: memoryview) -> list[tuple[str, Array]]:
    arrays = []
    at = 0
    for item in inputs:
        size = item.parameters.get("binary_data_size")
        if size is None:
            arrays.append((item.name, tensors.from_json(item.name, item.datatype, item.shape, item.data)))
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or at + size > len(binary):
            raise InvalidValue(f"Input {item.name!r} has less binary data than its binary_data_size says")
        arrays.append(
            (item.name, tensors.from_binary(item.name, item.datatype, item.shape, binary[at : at + size]))
        )
        at += size
    if at != len(binary):
        raise BadRequest("The body has more binary data than its inputs name")
    return arrays


def _encode(head: InferResponse) -> bytes:
    encoded = msgspec.json.encode(head)
    # msgspec writes NaN as null; json writes it as Python's clients read it.
    return encoded if encoded.find(b"null") < 0 else json.dumps(msgspec.to_builtins(head)).encode()


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document))


def _compressed(head: bytes, blobs: list[bytes], request: Request) -> Response:
    body, content_type, headers = head, JSON, []
    if blobs:
        body, content_type = b"".join((head, *blobs)), _BINARY
        headers.append(("inference-header-content-length", str(len(head))))
    accepted = request.environ.get("HTTP_ACCEPT_ENCODING")
    if accepted and len(body) >= _COMPRESS_FROM:
        for encoding, window in (("gzip", zlib.MAX_WBITS | 16), ("deflate", zlib.MAX_WBITS)):
            if encoding in accepted:
                packer = zlib.compressobj(level=1, wbits=window)
                body = packer.compress(body) + packer.flush()
                headers.append(("content-encoding", encoding))
                break
    return Response(body, 200, content_type, headers)
