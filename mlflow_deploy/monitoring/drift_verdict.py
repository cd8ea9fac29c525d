"""The drift monitor's verdict on one window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_deploy.config_monitor import MonitorSpec
from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring.drift import detect_drift
from mlflow_deploy.monitoring.profile import PREDICTION, ReferenceProfile, build_profile
from mlflow_deploy.monitoring.report import ColumnDrift, DriftReport
from mlflow_deploy.monitoring.results import WindowState
from mlflow_deploy.monitoring.segments import SegmentReport, detect_segment_drift
from mlflow_deploy.monitoring.verdict import Finding, finite
from mlflow_deploy.monitoring.window_rows import WindowRows

_BROKEN = ("vanished", "changed type")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What windows are compared with.

    Attributes:
        profile: None while there is none.
        source: where it comes from, in words.
        segments: a profile for each value of the segment column; None when they are not asked for or not there.
    """

    profile: ReferenceProfile | None
    source: str
    segments: Mapping[str, ReferenceProfile] | None = None


def judge_drift(
    rows: WindowRows, reference: Reference, spec: MonitorSpec, previous: WindowRows | None, title: str
) -> Finding:
    """Compare a window with the reference, with the window before, and segment by segment.

    Args:
        previous: the window before, None when there is none or it is not compared.
        title: of the page.
    """
    if reference.profile is None:
        return Finding(state="no_reference", summary=reference.source, reasons=(reference.source,))
    if not rows.rows:
        return Finding(
            state="not_enough_data",
            summary="No answered row was captured in this window",
            values={"drift.rows": 0.0},
            notes=(f"compared with {reference.source}",),
        )
    report, notes = _compared(rows, reference.profile, spec)
    before = _previous(rows, previous, spec)
    segments, note = _segments(rows, reference, spec)
    state, summary = _state(report, segments, spec)
    notes = (f"compared with {reference.source}", *notes, *note)
    reasons = tuple(
        f"{column.name}: {column.reason}"
        for column in sorted(report.columns.values(), key=lambda each: -(each.statistic or 1.0))
        if column.drifted
    )
    if report.multivariate is not None and report.multivariate.drifted:
        reasons = (*reasons, f"relations between columns: {report.multivariate.reason}")
    if segments is not None and segments.drifted:
        reasons = (*reasons, f"segments of {spec.drift.segment}: {segments.reason}")
    return Finding(
        state=state,
        summary=summary,
        reasons=reasons or (report.reason,),
        values=_values(report, before, segments),
        columns=_columns(report, before),
        notes=notes,
        page=report.to_html(title=title, note="; ".join(notes)),
    )


def _compared(
    rows: WindowRows, profile: ReferenceProfile, spec: MonitorSpec, *, previous: bool = False
) -> tuple[DriftReport, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    predictions = rows.prediction()
    if profile.predictions is None or predictions is None:
        why = "the reference has none" if profile.predictions is None else "the answers are not one column"
        notes = () if previous else (f"the predictions are not compared: {why}",)
        predictions = None
    report = detect_drift(
        profile,
        rows,
        predictions=predictions,
        false_alarm_rate=spec.drift.false_alarm_rate,
        min_rows=spec.min_rows,
        min_distance=spec.drift.min_distance,
        min_share=spec.drift.min_share,
    )
    return report, notes


def _previous(rows: WindowRows, previous: WindowRows | None, spec: MonitorSpec) -> DriftReport | None:
    """The window before as the reference; None when either has too few rows."""
    if previous is None or min(previous.rows, rows.rows) < spec.min_rows:
        return None
    profile = build_profile(previous, predictions=previous.prediction())
    return _compared(rows, profile, spec, previous=True)[0]


def _segments(
    rows: WindowRows, reference: Reference, spec: MonitorSpec
) -> tuple[SegmentReport | None, tuple[str, ...]]:
    if not spec.drift.segment:
        return None, ()
    if not reference.segments:
        return None, (f"the segments of {spec.drift.segment} have no reference yet",)
    try:
        report = detect_segment_drift(
            reference.segments,
            rows,
            spec.drift.segment,
            false_alarm_rate=spec.drift.false_alarm_rate,
            min_rows=spec.min_rows,
        )
    except DataError as error:
        return None, (f"the segments were not compared: {error.text}",)
    notes = [f"segments without any row: {', '.join(report.vanished)}"] if report.vanished else []
    return report, tuple(notes)


def _state(report: DriftReport, segments: SegmentReport | None, spec: MonitorSpec) -> tuple[WindowState, str]:
    if not report.enough_data:
        return "not_enough_data", report.reason
    share = _share(report)
    broken = any(column.state in _BROKEN for column in report.columns.values())
    answers = report.columns.get(PREDICTION)
    if broken or share >= spec.drift.alert_share > 0 or (answers is not None and answers.drifted):
        return "alert" if report.drifted else "ok", report.reason
    if report.drifted:
        return "warning", report.reason
    if segments is not None and segments.drifted:
        return "warning", f"{report.reason}, but {segments.reason}"
    return "ok", report.reason


def _share(report: DriftReport) -> float:
    judged = [column for column in report.columns.values() if column.state in ("ok", "drifted", *_BROKEN)]
    return sum(column.drifted for column in judged) / len(judged) if judged else 0.0


def _values(
    report: DriftReport, before: DriftReport | None, segments: SegmentReport | None
) -> dict[str, float]:
    judged = [column for column in report.columns.values() if column.statistic is not None]
    answers, together = report.columns.get(PREDICTION), report.multivariate
    return finite(
        {
            "drift.rows": float(report.rows),
            "drift.share": _share(report) if report.enough_data else None,
            "drift.drifted": float(sum(column.drifted for column in report.columns.values())),
            "drift.columns": float(len(report.columns)),
            "drift.max_statistic": max((column.statistic or 0.0 for column in judged), default=None),
            "drift.prediction": answers.statistic if answers is not None else None,
            "drift.relations": together.effect if together is not None else None,
            "drift.previous_share": _share(before) if before is not None else None,
            "drift.segments_drifted": None
            if segments is None
            else float(sum(each.drifted for each in segments.segments.values())),
        }
    )


def _columns(report: DriftReport, before: DriftReport | None) -> dict[str, dict[str, float]]:
    earlier: Mapping[str, ColumnDrift] = before.columns if before is not None else {}
    return {
        name: finite(
            {
                "statistic": column.statistic,
                "p_value": column.p_value,
                "missing_share": column.missing,
                "missing_reference": column.missing_reference,
                "drifted": float(column.drifted),
                "previous_statistic": earlier[name].statistic if name in earlier else None,
                "previous_drifted": float(earlier[name].drifted) if name in earlier else None,
            }
        )
        for name, column in report.columns.items()
    }
