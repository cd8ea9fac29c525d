"""What one monitor found in one window: the record that jobs write and that pages, metrics and alerts read."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

MonitorKind: TypeAlias = Literal["drift", "performance"]
WindowState: TypeAlias = Literal["ok", "warning", "alert", "not_enough_data", "no_reference", "error"]
"""not_enough_data: fewer rows (or labels) than a verdict needs; no_reference: nothing to compare with yet;
error: the monitor itself failed, and `reasons` says why."""


class WindowResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one monitor found in one window of one revision. Written once, never changed.

    Attributes:
        deployment: its name.
        revision: its number.
        kind: which monitor.
        start: first moment of the window, UTC, ISO 8601.
        end: first moment after it.
        rows: captured rows in the window.
        labels: those of them that have a label.
        state: the verdict.
        summary: one sentence for people.
        reasons: what led to the verdict, the gravest first.
        values: name -> number for the whole window, such as `drift.share`, `performance.roc_auc`,
            `estimate.roc_auc`, `latency.p95_ms`, `errors.share`, `labels.coverage`.
        columns: column -> name -> number, such as `statistic`, `p_value`, `missing_share`, `drifted` (0 or 1).
        report: file name of the HTML page beside this record; empty without one.
        run_id: MLflow run of this window; empty until it was logged.
        finished_at: UTC time, ISO 8601.
        number: counts the results of one window from 1; a higher one, made when labels came later or when
            the window was asked for again, supersedes the lower ones.
        notes: what a reader should know, such as what it was compared with when the version has no profile.
    """

    deployment: str
    revision: int
    kind: MonitorKind
    start: str
    end: str
    rows: int
    labels: int = 0
    state: WindowState
    summary: str
    reasons: tuple[str, ...] = ()
    values: dict[str, float] = {}
    columns: dict[str, dict[str, float]] = {}
    report: str = ""
    run_id: str = ""
    finished_at: str
    number: int = 1
    notes: tuple[str, ...] = ()
