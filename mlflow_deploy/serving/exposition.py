"""Prints the shared counters in Prometheus' text form; loaded at the first scrape only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from mlflow_deploy.serving.metrics import (
    ACTIVE,
    BATCH,
    BATCHED,
    BATCHES,
    CAPTURED,
    LABELS,
    LATENCY,
    LOAD,
    MODEL,
    PID,
    PROTOCOLS,
    QUEUE,
    REQUESTS,
    ROWS,
    SECONDS,
    SPANS,
    STATUSES,
    TIMED,
    UNCAPTURED,
    UNSENT,
    UNWRITTEN,
    WAITING,
    SharedMetrics,
)


def exposition(shared: SharedMetrics, info: dict[str, str]) -> tuple[bytes, str]:
    """The metrics of all workers in Prometheus' text form, and its content type.

    Args:
        info: labels of the info metric: deployment, revision, model name and version, bundle.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(shared.rows(), info))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector(Collector):
    """Makes metric families from the summed rows."""

    def __init__(self, rows: list[list[float]], info: dict[str, str]) -> None:
        self._rows = rows
        self._sum = [sum(cells) for cells in zip(*rows, strict=True)]
        self._info = info

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield InfoMetricFamily("mlflow_deploy_model", "The model that is served", value=self._info)
        yield from self._requests()
        yield self._times("mlflow_deploy_model_seconds", "Time of one model call", MODEL)
        yield self._times("mlflow_deploy_queue_seconds", "Time from arrival to the model call", QUEUE)
        batch = HistogramMetricFamily("mlflow_deploy_batch_rows", "Rows of one model call")
        batch.add_metric([], *_histogram(self._sum[BATCH : BATCH + BATCHED], BATCHES))
        yield batch
        rows = CounterMetricFamily("mlflow_deploy_rows", "Rows that were computed")
        rows.add_metric([], self._sum[ROWS])
        yield rows
        yield _gauge("mlflow_deploy_requests_in_flight", "Requests being answered", self._sum[ACTIVE])
        yield _gauge("mlflow_deploy_queue_length", "Requests waiting for the model", self._sum[WAITING])
        load = max(row[LOAD] for row in self._rows)
        yield _gauge("mlflow_deploy_load_seconds", "Time to load and warm up the model, slowest worker", load)
        yield from self._captured()
        yield from self._processes()

    def _captured(self) -> Iterator[Metric]:
        for name, doc, cell in (
            ("mlflow_deploy_captured_requests", "Requests that were captured", CAPTURED),
            (
                "mlflow_deploy_capture_drops",
                "Requests that were not captured although they should",
                UNCAPTURED,
            ),
            ("mlflow_deploy_capture_write_errors", "Writes of captured requests that failed", UNWRITTEN),
            ("mlflow_deploy_feedback_labels", "Labels that came by /feedback", LABELS),
            ("mlflow_deploy_spans_sent", "Spans that the collector has", SPANS),
            ("mlflow_deploy_span_drops", "Spans that it should have and has not", UNSENT),
        ):
            family = CounterMetricFamily(name, doc)
            family.add_metric([], self._sum[cell])
            yield family

    def _requests(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(
            "mlflow_deploy_requests", "Requests that were answered", labels=["protocol", "status"]
        )
        latency = HistogramMetricFamily(
            "mlflow_deploy_request_seconds",
            "Time from a request's arrival to its answer",
            labels=["protocol"],
        )
        for at, protocol in enumerate(PROTOCOLS):
            start = REQUESTS + at * len(STATUSES)
            for status, count in zip(STATUSES, self._sum[start : start + len(STATUSES)], strict=True):
                if count:
                    counter.add_metric([protocol, str(status)], count)
            start = LATENCY + at * TIMED
            latency.add_metric([protocol], *_histogram(self._sum[start : start + TIMED], SECONDS))
        yield counter
        yield latency

    def _times(self, name: str, doc: str, start: int) -> Metric:
        family = HistogramMetricFamily(name, doc)
        family.add_metric([], *_histogram(self._sum[start : start + TIMED], SECONDS))
        return family

    def _processes(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily("process_cpu_seconds", "CPU time of a server process", labels=["pid"])
        memory = GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory of a server process", labels=["pid"]
        )
        for pid in [os.getppid(), *(int(row[PID]) for row in self._rows if row[PID])]:
            used = _process(pid)
            if used is not None:
                cpu.add_metric([str(pid)], used[0])
                memory.add_metric([str(pid)], used[1])
        yield cpu
        yield memory


def _gauge(name: str, doc: str, value: float) -> Metric:
    return GaugeMetricFamily(name, doc, value=value)


def _histogram(cells: list[float], bounds: tuple[float, ...]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum, as prometheus_client takes them."""
    buckets, total = [], 0.0
    for bound, count in zip([*map(str, bounds), "+Inf"], cells[:-1], strict=True):
        total += count
        buckets.append((bound, total))
    return buckets, cells[-1]


def _process(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process, None when it has ended meanwhile."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), resident * os.sysconf("SC_PAGE_SIZE")
