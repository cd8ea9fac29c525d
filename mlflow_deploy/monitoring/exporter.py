"""Exports what the monitors found as Prometheus metrics, from the records on the disk.

The records outlive the job, so a restarted exporter says the same as before: a verdict never goes away because
a process died.
"""

from __future__ import annotations

import http.server
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from mlflow_deploy.errors import DeployError
from mlflow_deploy.files import write_atomic
from mlflow_deploy.monitoring import definitions as d
from mlflow_deploy.monitoring.alert_state import FOLDER, AlertState, read_state
from mlflow_deploy.monitoring.definitions import MetricDefinition
from mlflow_deploy.monitoring.http_port import HttpPort
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult, WindowState
from mlflow_deploy.monitoring.store import ResultStore

MAX_COLUMNS = 50
"""Columns that are exported one by one, of each revision: those that drifted, then those that moved most."""

ADDRESS = "exporter.json"
"""File in the monitor folder with the address of the exporter that runs."""

_LEVELS = {"ok": 0.0, "warning": 1.0, "alert": 2.0}
_SHOWN = ("drift.", "traffic.", "errors.", "latency.", "labels.")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is exported of a deployment.

    Attributes:
        results: every window that holds, of each revision and monitor in the order of time.
        heartbeat: when the job last went round its loop, seconds since the epoch; 0 for never.
        alerts: messages and actions.
    """

    deployment: str
    results: Sequence[WindowResult]
    heartbeat: float
    alerts: AlertState
    now: float


def exposition(snapshots: Iterable[Snapshot]) -> tuple[bytes, str]:
    """The metrics of deployments in Prometheus' text form, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collector(list(snapshots)))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def snapshot(data: Path, deployment: str, *, heartbeat: float, now: float) -> Snapshot:
    """Read what there is in a deployment's data folder on the revisions that run; what a monitor found in one
    that was replaced is no concern any more.

    Raises:
        DeployError: a file is damaged.
    """
    order, store = read_order(data), ResultStore(data)
    running = [each.number for each in order.revisions if each.active] if order else store.revisions()
    return Snapshot(
        deployment=deployment,
        results=[result for number in running for result in store.results(number)],
        heartbeat=heartbeat,
        alerts=read_state(data),
        now=now,
    )


class _Collector(Collector):
    """Makes the metric families of `definitions` from snapshots."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots
        self._families = {
            metric.name: _family(metric) for metric in d.definitions() if metric.source == "monitor"
        }

    def collect(self) -> Iterator[Metric]:
        """All families that have a value."""
        for found in self._snapshots:
            self._alerts(found)
            groups: dict[tuple[int, MonitorKind], list[WindowResult]] = {}
            for result in found.results:
                groups.setdefault((result.revision, result.kind), []).append(result)
            for (revision, kind), results in groups.items():
                self._monitor(found.deployment, str(revision), kind, results)
        yield from (family for family in self._families.values() if family.samples)

    def _add(self, metric: MetricDefinition, value: float, *labels: str) -> None:
        self._families[metric.name].add_metric(labels, value)

    def _alerts(self, found: Snapshot) -> None:
        name, alerts = found.deployment, found.alerts
        if found.heartbeat:
            self._add(d.HEARTBEAT, found.heartbeat, name)
        self._add(d.NOTICES_PENDING, len(alerts.deliveries) + bool(alerts.pending), name)
        oldest = min((delivery.created for delivery in alerts.deliveries), default=found.now)
        self._add(d.NOTICES_OLDEST, max(0.0, found.now - oldest), name)
        self._add(d.NOTICES_FAILED, alerts.failed, name)
        counts = Counter((entry.action, entry.state) for entry in alerts.actions)
        for (action, outcome), count in sorted(counts.items()):
            self._add(d.ACTIONS, count, name, action, outcome)

    def _monitor(self, name: str, revision: str, kind: MonitorKind, results: Sequence[WindowResult]) -> None:
        last = max(results, key=lambda result: _moment(result.end))
        where = (name, revision, kind)
        for state in get_args(WindowState):
            self._add(d.STATE, float(last.state == state), *where, state)
        for state, count in sorted(Counter(result.state for result in results).items()):
            self._add(d.WINDOWS, count, *where, state)
        self._add(d.WINDOW_END, _moment(last.end), *where)
        self._add(d.WINDOW_SECONDS, _moment(last.end) - _moment(last.start), *where)
        self._add(d.WINDOW_ROWS, last.rows, *where)
        self._add(d.WINDOW_LABELS, last.labels, *where)
        for value, number in last.values.items():
            if value.startswith(_SHOWN):
                self._add(d.VALUE, number, *where, value)
        judged = [result for result in results if result.state in _LEVELS]
        if judged:
            standing = max(judged, key=lambda result: _moment(result.end))
            self._add(d.VERDICT, _LEVELS[standing.state], *where)
            if kind == "drift":
                self._columns((name, revision), standing)
        if kind == "performance":
            self._quality((name, revision), results)

    def _columns(self, where: tuple[str, str], result: WindowResult) -> None:
        """The columns of the last window that was judged, those that moved most where they are too many."""
        columns = sorted(
            result.columns.items(),
            key=lambda item: (-item[1].get("drifted", 0.0), -item[1].get("statistic", 0.0), item[0]),
        )
        self._add(d.DRIFT_COLUMNS, len(columns), *where)
        self._add(d.DRIFT_DRIFTED, sum(bool(values.get("drifted")) for _, values in columns), *where)
        self._add(d.COLUMNS_OMITTED, max(0, len(columns) - MAX_COLUMNS), *where)
        for column, values in columns[:MAX_COLUMNS]:
            for metric, key in (
                (d.COLUMN_DISTANCE, "statistic"),
                (d.COLUMN_MISSING, "missing_share"),
                (d.COLUMN_DRIFTED, "drifted"),
            ):
                if key in values:
                    self._add(metric, values[key], *where, column)

    def _quality(self, where: tuple[str, str], results: Sequence[WindowResult]) -> None:
        """Each number from the latest window that has it: labels come later than estimates."""
        latest: dict[str, float] = {}
        for result in sorted(results, key=lambda result: _moment(result.end)):
            latest |= result.values
        for name, number in sorted(latest.items()):
            group, _, metric = name.partition(".")
            if group == "performance":
                self._add(d.QUALITY, number, *where, metric)
            elif group == "estimate":
                self._add(d.QUALITY_ESTIMATE, number, *where, metric)
            elif group == "reference":
                self._add(d.QUALITY_REFERENCE, number, *where, metric)
            else:
                continue
            reference = latest.get(f"reference.{metric}")
            if reference and group != "reference":
                loss = number - reference if metric in d.LOWER_IS_BETTER else reference - number
                origin = "measured" if group == "performance" else "estimated"
                self._add(d.QUALITY_LOSS, loss / abs(reference), *where, metric, origin)


def _family(metric: MetricDefinition) -> GaugeMetricFamily | CounterMetricFamily:
    cls = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return cls(metric.family, metric.help, labels=list(metric.labels))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Exporter:
    """Serves the metrics of a deployment over HTTP, on a thread of its own.

    Args:
        data: the deployment's data folder; the address is written into it for `mlflow-deploy monitor targets`.
        host: to listen on.
        port: 0 for a free one.
        advertised: host that Prometheus reaches; empty for `host`.

    Raises:
        PortInUse: something else listens there.
    """

    def __init__(
        self, data: Path, deployment: str, *, host: str = "127.0.0.1", port: int = 0, advertised: str = ""
    ) -> None:
        self._data, self._deployment = data, deployment
        self.heartbeat = 0.0
        """Set by the job when it goes round its loop, seconds since the epoch."""
        self._http = HttpPort(host, port, self._handler(), "exporter")
        self.port = self._http.port
        address = f"{advertised or host}:{self.port}"
        (data / FOLDER).mkdir(parents=True, exist_ok=True)
        write_atomic(data / FOLDER / ADDRESS, address.encode(), mode=0o640)

    def close(self) -> None:
        """Stop serving."""
        self._http.close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        exporter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers /metrics."""

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                try:
                    body, content_type = exporter.read()
                except DeployError as error:
                    # Prometheus then reports the exporter as down, which is an alert of its own.
                    self.send_error(500, explain=error.text)
                    return
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line."""

        return Handler

    def read(self) -> tuple[bytes, str]:
        """The exposition of this moment.

        Raises:
            DeployError: a record is damaged.
        """
        found = snapshot(self._data, self._deployment, heartbeat=self.heartbeat, now=time.time())
        return exposition([found])
