"""Sends a span of each prediction request to an OpenTelemetry collector, off the request's path."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import util
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.logs import logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from mlflow_deploy.serving.backends.base import Call
    from mlflow_deploy.serving.worker import Worker

STANDARD_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"
_WAITING = 4096  # spans that may wait for the collector; more are dropped and counted
_BATCH = 512
_PAUSE_MS = 1000  # between two batches
_LAST_SECONDS = 3.0  # how long the last spans may take when the server stops


def start_tracing(worker: Worker) -> Tracing | None:
    """What sends the spans of this worker; None when neither `serving.otlp_endpoint` nor the environment asks.

    Raises:
        MissingExtra: `serving.otlp_endpoint` is set, and OpenTelemetry's exporter is not installed. When only
            the environment names a collector, which may be meant for others, that is a warning in the log.
    """
    endpoint = worker.settings.otlp_endpoint
    if not endpoint and not any(os.environ.get(name) for name in STANDARD_VARIABLES):
        return None
    try:
        return Tracing(worker, endpoint)
    except ImportError as error:
        missing = MissingExtra(
            "Tracing", "tracing", missing=error.name or "opentelemetry-exporter-otlp-proto-http"
        )
        if endpoint:
            raise missing from error
        logger().warning("no spans are sent, although the environment names a collector: %s", missing.text)
        return None


class Tracing:
    """Makes spans of answered requests; every method may be called from several threads at once."""

    def __init__(self, worker: Worker, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        identity = worker.identity
        resource = Resource.create(
            {
                "service.name": identity["deployment"] or identity["model_name"],
                "service.version": identity["model_version"],
                **{f"mlflow_deploy.{key}": value for key, value in identity.items()},
            }
        )
        self._metrics = worker.metrics
        self._lock = threading.Lock()
        self._taken = self._handed = 0
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)
        full = endpoint and (endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH)
        processor = BatchSpanProcessor(
            _counting(OTLPSpanExporter(endpoint=full or None), self._arrived),
            max_queue_size=_WAITING,
            max_export_batch_size=_BATCH,
            schedule_delay_millis=_PAUSE_MS,
        )
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(worker.settings.trace_share),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("mlflow_deploy")
        # The process of a worker ends without atexit.
        util.Finalize(self, self._stop, exitpriority=5)

    def answered(
        self,
        name: str,
        attributes: Mapping[str, Any],
        carrier: Mapping[str, str | None],
        *,
        status: int,
        arrived: float,
        ended: float,
        call: Call | None,
    ) -> None:
        """Make the span of an answered request.

        Args:
            name: the span's name: method and route.
            attributes: what the protocol knows of the request.
            carrier: `traceparent` and `tracestate` of the caller, as far as it sent them.
            status: HTTP status, or the one that gRPC's stands for.
            arrived: `time.perf_counter()` at its arrival.
            ended: the same at its answer.
            call: what it asked the model; None when it did not get so far.
        """
        context = self._extract({key: value for key, value in carrier.items() if value})
        # perf_counter has no epoch; spans need one.
        epoch = time.time_ns() - int(perf_counter() * 1e9)
        span = self._tracer.start_span(
            name, context=context, kind=self._kind, start_time=epoch + int(arrived * 1e9)
        )
        if not span.is_recording() or not self._takes():
            return
        span.set_attributes({**attributes, "http.response.status_code": status})
        if call is not None:
            span.set_attribute("mlflow_deploy.rows", call.rows)
            if call.ended:
                span.set_attribute("mlflow_deploy.queue_seconds", call.begun - arrived)
                span.set_attribute("mlflow_deploy.model_seconds", call.ended - call.begun)
        if status >= 500:
            span.set_status(self._failed)
        span.end(end_time=epoch + int(ended * 1e9))

    def _takes(self) -> bool:
        """Whether one more span may wait; a refused one is counted."""
        with self._lock:
            if self._taken - self._handed < _WAITING:
                self._taken += 1
                return True
        self._metrics.traced(0, 1)
        return False

    def _arrived(self, spans: int, arrived: bool) -> None:
        """The exporter is done with these spans, and the collector has them or not."""
        with self._lock:
            self._handed += spans
        self._metrics.traced(spans if arrived else 0, 0 if arrived else spans)

    def _stop(self) -> None:
        """Send what waits, but do not hold up the end of the process for it."""
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST_SECONDS)


def _counting(exporter: SpanExporter, done: Callable[[int, bool], None]) -> SpanExporter:
    """The exporter, which tells `done` how many spans it took and whether the collector has them."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Counting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = SpanExportResult.FAILURE
            try:
                result = exporter.export(spans)
            finally:
                done(len(spans), result is SpanExportResult.SUCCESS)
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Counting()
