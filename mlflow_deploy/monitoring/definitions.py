"""The one source of metric names: what servers and monitors export, for rules, dashboards and documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Source = Literal["server", "monitor"]

PREFIX = "mlflow_deploy_"

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse", "median_ae"})
"""Metrics of quality that fall when a model gets better."""


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """One metric.

    Attributes:
        name: as queries write it, for histograms without `_bucket`, `_sum` and `_count`.
        help: what it counts, with its unit where the name does not tell it.
        labels: those it carries itself; servers get `deployment` and `revision` from the scrape's targets.
        source: `server` for `/metrics` of the scoring server, `monitor` for the exporter of the monitor job.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    source: Source

    @property
    def family(self) -> str:
        """The name under which prometheus_client makes it."""
        return self.name.removesuffix("_total").removesuffix("_info")

    @property
    def series(self) -> tuple[str, ...]:
        """Names that a query may use."""
        if self.kind == "histogram":
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


def _server(
    name: str, kind: Literal["counter", "gauge", "histogram", "info"], help_: str, *labels: str
) -> MetricDefinition:
    return MetricDefinition(name=PREFIX + name, kind=kind, help=help_, labels=labels, source="server")


def _monitor(
    name: str, help_: str, *labels: str, kind: Literal["counter", "gauge"] = "gauge"
) -> MetricDefinition:
    common = ("deployment", "revision") if labels[:1] != ("deployment",) else ()
    return MetricDefinition(
        name=PREFIX + name, kind=kind, help=help_, labels=(*common, *labels), source="monitor"
    )


MODEL = _server(
    "model_info",
    "info",
    "The model that is served",
    "deployment", "revision", "model_name", "model_version", "bundle", "format",
)  # fmt: skip
REQUESTS = _server("requests_total", "counter", "Requests that were answered", "protocol", "status")
REQUEST_SECONDS = _server(
    "request_seconds", "histogram", "Time from a request's arrival to its answer", "protocol"
)
MODEL_SECONDS = _server("model_seconds", "histogram", "Time of one model call")
QUEUE_SECONDS = _server("queue_seconds", "histogram", "Time from arrival to the model call")
BATCH_ROWS = _server("batch_rows", "histogram", "Rows of one model call")
ROWS = _server("rows_total", "counter", "Rows that were computed")
IN_FLIGHT = _server("requests_in_flight", "gauge", "Requests being answered")
QUEUE_LENGTH = _server("queue_length", "gauge", "Requests waiting for the model")
LOAD_SECONDS = _server("load_seconds", "gauge", "Time to load and warm up the model, slowest worker")
CAPTURED = _server("captured_requests_total", "counter", "Requests that were captured")
CAPTURE_DROPPED = _server(
    "capture_drops_total", "counter", "Requests that were not captured although they should"
)
CAPTURE_ERRORS = _server("capture_write_errors_total", "counter", "Writes of captured requests that failed")
FEEDBACK = _server("feedback_labels_total", "counter", "Labels that came by /feedback")
SPANS_SENT = _server("spans_sent_total", "counter", "Spans that the collector has")
SPANS_DROPPED = _server("span_drops_total", "counter", "Spans that it should have and has not")

HEARTBEAT = _monitor(
    "monitor_heartbeat_timestamp_seconds", "When the monitor job last went round its loop", "deployment"
)
VERDICT = _monitor(
    "monitor_verdict",
    "Standing verdict: 0 ok, 1 warning, 2 alert; a window without a verdict leaves it as it was",
    "monitor",
)
STATE = _monitor("monitor_state", "1 for the state of the last window, 0 for the others", "monitor", "state")
WINDOW_END = _monitor("monitor_window_end_timestamp_seconds", "End of the last window", "monitor")
WINDOW_SECONDS = _monitor("monitor_window_seconds", "Length of the last window", "monitor")
WINDOW_ROWS = _monitor("monitor_window_rows", "Captured rows of the last window", "monitor")
WINDOW_LABELS = _monitor("monitor_window_labels", "Rows of the last window that have a label", "monitor")
WINDOWS = _monitor("monitor_windows", "Windows on record, by state", "monitor", "state")
VALUE = _monitor(
    "monitor_value",
    "Numbers of the last window that are no quality metric, such as drift.share or latency.p95_ms",
    "monitor", "name",
)  # fmt: skip
DRIFT_COLUMNS = _monitor("drift_columns", "Columns of the last window that were compared")
DRIFT_DRIFTED = _monitor("drift_columns_drifted", "Columns of the last window that drifted")
COLUMN_DISTANCE = _monitor(
    "drift_column_distance", "Jensen-Shannon distance of a column to the reference, 0 to 1", "column"
)
COLUMN_MISSING = _monitor("drift_column_missing_share", "Share of rows without a value", "column")
COLUMN_DRIFTED = _monitor("drift_column_drifted", "1 when the column drifted", "column")
COLUMNS_OMITTED = _monitor(
    "drift_columns_omitted", "Columns that are not exported one by one, because they are too many"
)
QUALITY = _monitor("quality", "Quality on the labelled rows of the last window", "metric")
QUALITY_ESTIMATE = _monitor(
    "quality_estimate",
    "Estimated quality before labels came; it assumes that the concept is as it was",
    "metric",
)
QUALITY_REFERENCE = _monitor("quality_reference", "Quality on the reference rows", "metric")
QUALITY_LOSS = _monitor(
    "quality_loss_ratio",
    "How much worse than the reference, as a share of it; negative when better",
    "metric", "origin",
)  # fmt: skip
NOTICES_PENDING = _monitor("notifications_pending", "Messages that wait to be delivered", "deployment")
NOTICES_OLDEST = _monitor(
    "notifications_oldest_seconds", "Age of the oldest message that waits; 0 without one", "deployment"
)
NOTICES_FAILED = _monitor(
    "notifications_failed_total", "Messages that were given up", "deployment", kind="counter"
)
ACTIONS = _monitor(
    "actions_total", "Actions of the monitors, by how they ended", "deployment", "action", "outcome",
    kind="counter",
)  # fmt: skip

RECORDED = {
    "mlflow_deploy:monitor_verdict": f"max by (deployment, revision, monitor) ({VERDICT.name})",
    "mlflow_deploy:quality_loss_ratio": f"max by (deployment, revision, metric, origin) ({QUALITY_LOSS.name})",
}
"""Recording rules. They carry no address: an exporter that comes back elsewhere goes on in one series."""


def definitions() -> Iterator[MetricDefinition]:
    """All metrics, in the order of definition."""
    for value in globals().values():
        if isinstance(value, MetricDefinition):
            yield value


def known_series() -> frozenset[str]:
    """Every name of ours that a query may use."""
    return frozenset(name for metric in definitions() for name in metric.series) | {*RECORDED}


def named_series(expression: str) -> frozenset[str]:
    """The names of ours that a query uses, known or not."""
    return frozenset(re.findall(r"\bmlflow_deploy[_:]\w+", expression))


def markdown() -> str:
    """The table of metrics in the documentation."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in definitions():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind}, {metric.source} | {labels} | {metric.help} |")
    return "\n".join(lines)
