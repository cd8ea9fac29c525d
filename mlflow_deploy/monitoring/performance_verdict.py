"""The performance monitor's verdict on one window: measured and estimated quality, latency, errors, traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.config_monitor import MonitorSpec
from mlflow_deploy.errors import DeployError
from mlflow_deploy.monitoring.captured import LATENCY, REQUEST_ID, ROW, SERVICE_COLUMNS, STATUS, CaptureStore
from mlflow_deploy.monitoring.estimate import (
    LOSS_METRICS,
    EstimateCheck,
    PerformanceEstimate,
    check_estimate,
    estimate_performance,
)
from mlflow_deploy.monitoring.labels import LabelledRows, LabelReport
from mlflow_deploy.monitoring.measured import PerformanceReport, performance
from mlflow_deploy.monitoring.metrics import LOWER_IS_BETTER
from mlflow_deploy.monitoring.performance_page import performance_page
from mlflow_deploy.monitoring.profile import ReferenceProfile
from mlflow_deploy.monitoring.results import WindowState
from mlflow_deploy.monitoring.verdict import Finding, finite, worst
from mlflow_deploy.monitoring.window_rows import ANSWER, Rows, answered, probabilities
from mlflow_deploy.monitoring.windows import Window

MIN_REQUESTS = 20
"""Requests below which neither error share nor latency is judged."""
ESTIMATE_ROWS = 200_000
"""Rows that an estimate is made from, so that its memory is bounded."""
_SERVER_ERROR = 500
_CLIENT_ERROR = 400
_LABEL = "label"


@dataclass(frozen=True)
class _Service:
    """What requests met with: values by name, and what is wrong with them."""

    values: dict[str, float]
    alerts: tuple[str, ...]


def judge_performance(
    captures: CaptureStore,
    revision: int,
    window: Window,
    profile: ReferenceProfile | None,
    spec: MonitorSpec,
    labels: pa.Table,
    title: str,
    *,
    key: str = REQUEST_ID,
) -> Finding:
    """Measure what can be measured of a window now.

    Args:
        profile: the reference, None while there is none.
        labels: all labels of the deployment, as `CaptureStore.labels` gives them.
        title: of the page.
        key: what labels name: the request id, or a column of the features.

    Raises:
        DataError: the rows cannot be read.
    """
    names = captures.schema(revision, window.start, window.end).names
    narrow = [name for name in names if name in SERVICE_COLUMNS or _answers(name) or name == key]
    rows = captures.read(revision, window.start, window.end, narrow)
    service = _service(rows, window, spec)
    if not rows.num_rows:
        return Finding(
            state="not_enough_data",
            summary="No request was captured in this window",
            values=service.values,
        )
    notes: list[str] = []
    joined = _joined(captures, rows, labels, key, notes)
    report = None if joined is None else _measured(joined, profile, spec, notes)
    estimates = _estimated(_some(captures, revision, window), profile, spec, notes)
    checks = [] if report is None else [check_estimate(each, report) for each in estimates]
    state, summary, reasons = _verdict(report, joined, estimates, checks, service)
    return Finding(
        state=state,
        summary=summary,
        reasons=reasons,
        values=service.values | _values(report, joined, estimates, checks),
        notes=tuple(dict.fromkeys(notes)),
        labels=0 if joined is None else joined.report.matched,
        page=performance_page(
            title,
            summary,
            state,
            tuple(reasons),
            service.values,
            report,
            estimates,
            notes,
            joined.report if joined is not None else None,
        ),
    )


def _service(rows: pa.Table, window: Window, spec: MonitorSpec) -> _Service:
    """Traffic, errors and latency; each request counts once."""
    seconds = (window.end - window.start) / timedelta(seconds=1)
    values = {"traffic.rows": float(rows.num_rows)}
    if not rows.num_rows:
        return _Service(values | {"traffic.requests": 0.0, "traffic.per_second": 0.0}, ())
    first = rows.filter(pc.equal(pc.fill_null(rows.column(ROW), 0), 0))
    status = np.asarray(pc.fill_null(first.column(STATUS), 0).to_numpy())
    latency = np.asarray(pc.cast(first.column(LATENCY), pa.float64()).to_numpy(zero_copy_only=False))
    latency = latency[np.isfinite(latency) & (status < _CLIENT_ERROR)]
    requests = first.num_rows
    failed = float((status >= _SERVER_ERROR).mean()) if requests else 0.0
    values |= {
        "traffic.requests": float(requests),
        "traffic.per_second": requests / seconds,
        "errors.share": failed,
        "errors.client_share": float(((status >= _CLIENT_ERROR) & (status < _SERVER_ERROR)).mean())
        if requests
        else 0.0,
    }
    if latency.size:
        quantiles = np.quantile(latency, (0.5, 0.95, 0.99))
        values |= {
            f"latency.p{part}_ms": float(value) for part, value in zip((50, 95, 99), quantiles, strict=True)
        }
    alerts = []
    if requests >= MIN_REQUESTS and failed > spec.performance.max_error_share:
        alerts.append(
            f"{failed:.1%} of {requests} requests failed, {spec.performance.max_error_share:.1%} are allowed"
        )
    limit = spec.performance.max_latency_ms
    if limit and latency.size >= MIN_REQUESTS and values["latency.p95_ms"] > limit:
        alerts.append(f"p95 of the latency is {values['latency.p95_ms']:.4g} ms, {limit:g} ms are allowed")
    return _Service(finite(dict(values)), tuple(alerts))


def _joined(
    captures: CaptureStore, rows: pa.Table, labels: pa.Table, key: str, notes: list[str]
) -> LabelledRows | None:
    if not labels.num_rows:
        notes.append("no label has come yet")
        return None
    wanted = [name for name in rows.column_names if name in SERVICE_COLUMNS or _answers(name)]
    if key != REQUEST_ID and key not in wanted:
        if key not in rows.column_names:
            notes.append(f"labels cannot be joined: the captured rows have no column {key!r}")
            return None
        wanted.append(key)
    if _LABEL in wanted:
        notes.append("labels cannot be joined: the labels' key column is called 'label'")
        return None
    return captures.join(rows.select(wanted), key=key, labels=labels)


def _answers(name: str) -> bool:
    return name == ANSWER or name.startswith(("prediction_", "probability_"))


def _some(captures: CaptureStore, revision: int, window: Window) -> pa.Table:
    """All columns of the answered rows, of the first ones only where there are very many."""
    taken, count = [], 0
    for batch in captures.batches(revision, window.start, window.end):
        taken.append(batch)
        count += batch.num_rows
        if count >= ESTIMATE_ROWS:
            break
    return answered(pa.Table.from_batches(taken, taken[0].schema if taken else pa.schema([])))


def _measured(
    joined: LabelledRows, profile: ReferenceProfile | None, spec: MonitorSpec, notes: list[str]
) -> PerformanceReport | None:
    """The quality on the labelled rows, None without any."""
    if not joined.rows.num_rows:
        return None
    quality = profile.quality if profile is not None else None
    matrix, classes = probabilities(joined.rows, quality.classes if quality is not None else None)
    known = quality.classes if quality is not None and quality.classes else classes
    if ANSWER not in joined.rows.column_names and matrix is None:
        notes.append("the answers are not one column, so their quality cannot be measured")
        return None
    if quality is None:
        notes.append("the reference does not know the quality of the version, so nothing is compared")
    columns = [name for name in joined.rows.column_names if name not in SERVICE_COLUMNS]
    report = performance(
        Rows(joined.rows, columns),
        _LABEL,
        predictions=ANSWER if ANSWER in columns else None,
        probabilities=matrix,
        classes=known or None,
        threshold=quality.threshold if quality is not None else 0.5,
        reference=profile if quality is not None else None,
        false_alarm_rate=spec.performance.false_alarm_rate,
        min_rows=spec.min_rows,
        tolerance=spec.performance.tolerance,
    )
    notes += report.notes
    return report


def _estimated(
    rows: pa.Table, profile: ReferenceProfile | None, spec: MonitorSpec, notes: list[str]
) -> list[PerformanceEstimate]:
    """What the quality probably is, before any label."""
    quality = profile.quality if profile is not None else None
    if profile is None or quality is None or not rows.num_rows:
        return []
    matrix, _ = probabilities(rows, quality.classes or None)
    given: npt.NDArray[np.float64] | str | None = matrix
    if ANSWER not in rows.column_names and matrix is None:
        return []
    if quality.scores:
        metrics: tuple[str, ...] = ("roc_auc", "accuracy")
    else:
        metrics = tuple(name for name in LOSS_METRICS if quality.model and name in quality.model.losses)
    names = [name for name in rows.column_names if name not in SERVICE_COLUMNS and not _answers(name)]
    if ANSWER in rows.column_names:
        names.append(ANSWER)
    found = []
    for metric in metrics:
        try:
            estimate = estimate_performance(
                profile,
                Rows(rows, names),
                metric,
                predictions=ANSWER,
                probabilities=given,
                min_rows=spec.min_rows,
            )
        except DeployError as error:
            notes.append(f"{metric} was not estimated: {error.text}")
            continue
        if estimate.value is None:
            notes.append(f"{metric} was not estimated: {estimate.reason}")
        else:
            found.append(estimate)
    return found


def _verdict(
    report: PerformanceReport | None,
    joined: LabelledRows | None,
    estimates: list[PerformanceEstimate],
    checks: list[EstimateCheck],
    service: _Service,
) -> tuple[WindowState, str, tuple[str, ...]]:
    reasons = list(service.alerts)
    states: list[WindowState] = ["alert"] if service.alerts else []
    otherwise: WindowState = "not_enough_data"
    told = "no row has a label" if joined is None or report is None else report.reason
    if report is not None:
        if report.state == "worse":
            states.append("alert")
        elif report.state == "ok":
            otherwise = "ok"
        elif report.state == "not compared":
            otherwise = "no_reference"
        reasons.append(report.reason)
    if report is None or report.state not in ("ok", "worse"):
        for estimate in estimates:
            if _estimated_worse(estimate):
                states.append("warning")
                reasons.append(
                    f"{estimate.metric} is estimated as {estimate.value:.4g}, it was {estimate.reference:.4g} "
                    "on the reference; an estimate, not a measurement"
                )
        told += "".join(f"; {each.metric} is estimated as {each.value:.4g}" for each in estimates)
    reasons += [check.reason for check in checks if check.agrees is False]
    return (
        worst(states, otherwise),
        "; ".join((*service.alerts, told)) if service.alerts else told,
        tuple(reasons),
    )


def _estimated_worse(estimate: PerformanceEstimate) -> bool:
    """Whether the whole band of an estimate is on the bad side of the reference."""
    if estimate.reference is None or estimate.low is None or estimate.high is None:
        return False
    if estimate.metric in LOWER_IS_BETTER:
        return estimate.low > estimate.reference
    return estimate.high < estimate.reference


def _values(
    report: PerformanceReport | None,
    joined: LabelledRows | None,
    estimates: list[PerformanceEstimate],
    checks: list[EstimateCheck],
) -> dict[str, float]:
    values: dict[str, float | None] = {}
    if joined is not None:
        values |= {f"labels.{name}": number for name, number in _label_counts(joined.report).items()}
    for name, metric in (report.metrics if report is not None else {}).items():
        values |= {
            f"performance.{name}": metric.value,
            f"performance_low.{name}": metric.low,
            f"performance_high.{name}": metric.high,
        }
    for name, comparison in (report.comparisons if report is not None else {}).items():
        values |= {f"reference.{name}": comparison.reference, f"p_value.{name}": comparison.p_value}
    for estimate in estimates:
        values |= {
            f"estimate.{estimate.metric}": estimate.value,
            f"estimate_low.{estimate.metric}": estimate.low,
            f"estimate_high.{estimate.metric}": estimate.high,
            f"reference.{estimate.metric}": estimate.reference,
        }
    for check in checks:
        values[f"estimate_error.{check.metric}"] = check.difference
        values[f"estimate_agrees.{check.metric}"] = None if check.agrees is None else float(check.agrees)
    return finite(values)


def _label_counts(report: LabelReport) -> Mapping[str, float | None]:
    """What became of the labels; those of other windows are unknown here, so they are not counted."""
    return {
        "matched": report.matched,
        "coverage": report.coverage,
        "late": report.late,
        "duplicates": report.duplicates,
        "conflicting": report.conflicting,
        "superseded": report.superseded,
        "before_prediction": report.before_prediction,
    }
