"""Spans of requests reach a real OTLP/HTTP receiver, and a missing or silent one stops no answer."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.serving.metrics import SharedMetrics
from mlflow_deploy.serving.recorder import SharedRecorder
from mlflow_deploy.serving.tracing import STANDARD_VARIABLES, start_tracing
from mlflow_deploy.serving.worker import Launch, Worker
from tests.integration.serving.bundles import COLUMNS
from tests.integration.serving.running import running
from tests.integration.serving.zoo import Animal

BODY = {"dataframe_split": {"columns": COLUMNS, "data": [[0.0] * len(COLUMNS)] * 3}}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver(ThreadingHTTPServer):
    """Keeps the spans that come, each with its resource, and answers `status` when the gate is open."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.gate = threading.Event()
        self.gate.set()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = values(group.resource.attributes)
            self.server.spans += [(about, span) for scope in group.scope_spans for span in scope.spans]
        self.server.gate.wait(30)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_requests_become_spans_as_the_caller_decides(
    animals: dict[str, Animal], receiver: Receiver, tmp_path: Path
) -> None:
    import grpc

    from mlflow_deploy.serving.protocols.grpc.messages import SERVICE, messages

    bundle = animals["doubles"].bundle
    options = {"otlp_endpoint": receiver.url, "trace_share": 0.0, "grpc": True}
    with running(bundle.path, tmp_path, **options) as server:
        with server.client() as client:
            for flag, caller in (("01", "traced"), ("00", "left-out")):
                headers = {
                    "traceparent": f"00-{TRACE}-{PARENT}-{flag}",
                    "x-request-id": caller,
                }
                assert client.post("/invocations", json=BODY, headers=headers).status_code == 200
            assert client.post("/invocations", json=BODY).status_code == 200
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert client.get("/ping", headers=headers).status_code == 200
            assert client.post("/invocations", json={}, headers=headers).status_code == 400
        known = messages()
        with grpc.insecure_channel(f"127.0.0.1:{server.port + 1}") as channel:
            infer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=known["ModelInferRequest"].SerializeToString,
                response_deserializer=known["ModelInferResponse"].FromString,
            )
            with pytest.raises(grpc.RpcError):
                infer(known["ModelInferRequest"](model_name="no"), metadata=tuple(headers.items()))
        # What still waits is sent before the server ends.
        assert server.stop() == 0

    good, bad, call = sorted((span for _, span in receiver.spans), key=lambda span: span.start_time_unix_nano)
    for span in (good, bad, call):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 30e9
    assert good.name == "POST /invocations"
    told = values(good.attributes)
    assert told["http.route"] == "/invocations"
    assert told["http.response.status_code"] == 200
    assert told["mlflow_deploy.request_id"] == "traced"
    assert told["mlflow_deploy.rows"] == 3
    assert 0 < told["mlflow_deploy.model_seconds"] < 10
    assert values(bad.attributes)["http.response.status_code"] == 400
    assert (values(call.attributes)["rpc.method"], call.name) == ("ModelInfer", f"{SERVICE}/ModelInfer")
    about = receiver.spans[0][0]
    assert (about["service.name"], about["mlflow_deploy.revision"]) == ("toy", "3")
    assert about["mlflow_deploy.bundle"] == bundle.digest


def test_a_collector_that_refuses_loses_spans_and_no_answer(
    animals: dict[str, Animal], receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.status = 400
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    with running(animals["doubles"].bundle.path, tmp_path) as server, server.client() as client:
        for _ in range(5):
            assert client.post("/invocations", json=BODY).status_code == 200
        for _ in range(200):
            text = client.get("/metrics").text
            if "mlflow_deploy_span_drops_total 5.0" in text:
                break
            threading.Event().wait(0.05)
    assert "mlflow_deploy_span_drops_total 5.0" in text
    assert "mlflow_deploy_spans_sent_total 0.0" in text
    assert len(receiver.spans) == 5


def worker(animal: Animal, **serving: Any) -> Worker:
    config = parse_config({"deployment": "toy", "serving": serving})
    return Worker(Launch(animal.bundle, config, SharedMetrics(1), SharedRecorder(1)), 0)


def test_a_missing_exporter_is_named(
    animals: dict[str, Animal], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in STANDARD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert start_tracing(worker(animals["doubles"])) is None

    with pytest.raises(MissingExtra, match=r"mlflow-deploy\[tracing\]"):
        start_tracing(worker(animals["doubles"], otlp_endpoint="http://127.0.0.1:9"))

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "mlflow_deploy.serving"):
        assert start_tracing(worker(animals["doubles"])) is None
    assert "no spans are sent" in caplog.text


def test_spans_that_the_collector_is_too_slow_for_are_dropped_and_counted(
    animals: dict[str, Animal], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_deploy.serving import tracing as module
    from mlflow_deploy.serving.metrics import SPANS, UNSENT
    from mlflow_deploy.serving.server import make_app

    monkeypatch.setattr(module, "_WAITING", 4)
    monkeypatch.setattr(module, "_BATCH", 4)
    monkeypatch.setattr(module, "_PAUSE_MS", 60_000)
    busy = worker(animals["doubles"], otlp_endpoint=f"{receiver.url}/v1/traces")
    busy.load()
    busy.tracing = start_tracing(busy)
    receiver.gate.clear()
    client = httpx.Client(transport=httpx.WSGITransport(app=make_app(busy)), base_url="http://app")
    for _ in range(10):
        assert client.post("/invocations", json=BODY).status_code == 200
    receiver.gate.set()
    assert busy.tracing is not None
    busy.tracing._stop()
    cells = busy.metrics._cells
    assert (cells[SPANS], cells[UNSENT]) == (4, 6)
