"""Compare a window of rows with a reference profile."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.monitoring import multivariate, stats
from mlflow_deploy.monitoring.profile import PREDICTION, ColumnProfile, ReferenceProfile
from mlflow_deploy.monitoring.report import (
    Check,
    ColumnDrift,
    DriftReport,
    Histogram,
    MultivariateDrift,
    State,
)
from mlflow_deploy.monitoring.tables import Data, Table, open_table, values_table
from mlflow_deploy.monitoring.window import WindowColumn, count_column

MIN_ROWS = 200
MIN_DISTANCE = 0.08
MIN_SHARE = 0.02
MIN_ERROR_CHANGE = 0.1


def detect_drift(
    profile: ReferenceProfile,
    data: Data,
    *,
    predictions: Any = None,
    false_alarm_rate: float = 0.01,
    min_rows: int = MIN_ROWS,
    min_distance: float = MIN_DISTANCE,
    min_share: float = MIN_SHARE,
) -> DriftReport:
    """Tell which columns of a window differ from the reference, by a size that matters and not by chance.

    A column drifts when a change is both large enough (`min_distance`, `min_share`) and significant after
    Holm's correction over every test of the report. The method is the same for every number of rows.

    Args:
        data: the window: a pandas DataFrame, a pyarrow Table, or the path of a Parquet file or of a folder of
            them, which is read in constant memory.
        predictions: the model's answers on these rows; needs a profile with predictions.
        false_alarm_rate: accepted chance that a window without drift is reported as drifted.
        min_rows: below this, in the window or the reference, the answer is "not enough data".
        min_distance: smallest Jensen-Shannon distance that counts; 0.08 is what a shift of the mean by a fifth
            of a standard deviation gives.
        min_share: smallest change that counts in the share of missing, new or out-of-range values.

    Raises:
        DataError: the data cannot be read at all. Anything odd inside it is a reported state instead.
        ConfigError: a threshold is out of its range, or predictions are given that the profile lacks.
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"false_alarm_rate must lie between 0 and 1, not {false_alarm_rate}")
    table = open_table(data)
    judge = _Judge(profile, table.rows, min_distance, min_share)
    found = [judge.column(table, column) for column in profile.columns]
    if predictions is not None:
        if profile.predictions is None:
            raise ConfigError(
                "Predictions cannot be compared",
                why="the reference profile has none",
                hint="Build it with build_profile(data, predictions=...)",
            )
        answers = values_table(PREDICTION, predictions, table.rows)
        found.append(judge.column(answers, profile.predictions))
    known = {column.name for column in profile.columns}
    found += [_new_column(name) for name in table.names if name not in known]
    enough = min(profile.rows, table.rows) >= max(min_rows, 1)
    together = judge.together() if enough else None
    if enough:
        found, together = _decide(found, together, false_alarm_rate)
    else:
        found = [_withheld(column, profile.rows, table.rows, min_rows) for column in found]
    broken = together is not None and together.drifted
    reason = _summary(found, enough, profile.rows, table.rows, min_rows)
    return DriftReport(
        drifted=broken or any(column.drifted for column in found),
        enough_data=enough,
        reason=f"{reason}; the columns do not move together as they did" if broken else reason,
        columns={column.name: column for column in found},
        rows=table.rows,
        rows_reference=profile.rows,
        false_alarm_rate=false_alarm_rate,
        min_rows=min_rows,
        multivariate=together,
    )


class _Judge:
    """Measures columns of one window; verdicts come after all are measured, since they correct for them all."""

    def __init__(self, profile: ReferenceProfile, rows: int, min_distance: float, min_share: float) -> None:
        self._rows_reference, self._rows = profile.rows, rows
        self._min_distance, self._min_share = min_distance, min_share
        self._known = {column.name: column for column in profile.columns}
        self._multivariate = profile.multivariate
        self._picked = multivariate.sample_positions(rows)
        self._sampled: dict[str, npt.NDArray[np.int64]] = {}

    def together(self) -> MultivariateDrift | None:
        """How the columns measured so far move together, not yet corrected for the number of tests."""
        reference = self._multivariate
        if reference is None:
            return None
        lost = [name for name in reference.columns if name not in self._sampled]
        if lost:
            return MultivariateDrift(
                drifted=False, reason=f"not compared, because these columns cannot be: {', '.join(lost)}"
            )
        bins = np.column_stack([self._sampled[name] for name in reference.columns])
        found = multivariate.compare(
            reference, [self._known[name].counts for name in reference.columns], bins
        )
        return MultivariateDrift(
            drifted=False,
            reason=f"reconstruction error of a row {found.error_reference:.4g} -> {found.error:.4g}",
            effect=found.effect,
            threshold=MIN_ERROR_CHANGE,
            p_value=found.p_value,
            rows=len(bins),
        )

    def column(self, table: Table, reference: ColumnProfile) -> ColumnDrift:
        """What was measured in a column, with tests that are not yet corrected for their number."""
        missing_reference = reference.missing / self._rows_reference if self._rows_reference else None
        found = ColumnDrift(name=reference.name, state="ok", reason="", missing_reference=missing_reference)
        if reference.name not in table.names:
            return replace(
                found, state="vanished", drifted=True, reason="the column is not in the window any more"
            )
        if reference.kind == "unsupported":
            return replace(
                found, state="not compared", reason=f"values of type {reference.dtype} are not compared"
            )
        watched = self._multivariate is not None and reference.name in self._multivariate.columns
        is_feature = self._known.get(reference.name) is reference
        window = count_column(table, reference, self._picked if watched and is_feature else None)
        if not window.comparable:
            reason = f"the type changed from {reference.dtype} to {window.dtype}"
            return replace(found, state="changed type", drifted=True, reason=reason)
        if window.sample is not None:
            self._sampled[reference.name] = window.sample
        checks = self._checks(reference, window) if self._rows and self._rows_reference else ()
        return replace(
            found,
            statistic=self._distance(reference, window) if checks else None,
            histogram=_histogram(reference, window),
            missing=window.missing / self._rows if self._rows else None,
            reason=_remarks(reference, window, self._rows),
            checks=checks,
        )

    def _checks(self, reference: ColumnProfile, window: WindowColumn) -> tuple[Check, ...]:
        checks = [self._distribution(reference, window)]
        before, after = reference.missing, window.missing
        if before or after:
            p_value = stats.share_changed(before, self._rows_reference, after, self._rows)
            checks.append(self._share("missing", "missing values", before, after, p_value))
        if reference.tail is not None:
            old, new = reference.tail.once, window.unseen
            p_value = stats.share_rose(old, self._rows_reference, new, self._rows)
            checks.append(self._share("new values", "values never seen before", old, new, p_value))
        outside = _outside(reference)
        if outside is not None:
            name, words, bins = outside
            old = int(np.asarray(reference.counts)[bins].sum())
            new = int(window.counts[bins].sum())
            p_value = stats.share_rose(old, self._rows_reference, new, self._rows)
            checks.append(self._share(name, words, old, new, p_value))
        return tuple(checks)

    def _distance(self, reference: ColumnProfile, window: WindowColumn) -> float:
        before = np.array(reference.counts, dtype=np.int64)
        if reference.tail is not None:
            # Counted on every other row, so that missing values are taken at half their number too.
            missing = round(
                reference.missing * int(before.sum()) / max(self._rows_reference - reference.missing, 1)
            )
        else:
            missing = reference.missing
        return stats.jensen_shannon(
            *stats.pool_rare_bins(np.append(before, missing), np.append(window.counts, window.missing))
        )

    def _distribution(self, reference: ColumnProfile, window: WindowColumn) -> Check:
        # Of the rows with a value: many without one, which have a check of their own, would dilute it.
        before, after = stats.pool_rare_bins(np.array(reference.counts, dtype=np.int64), window.counts)
        _, _, p_value = stats.chi2_two_samples(before, after)
        reason = "the distribution moved"
        if reference.moments is not None and window.mean is not None:
            reason += f" (mean {reference.moments.mean:.4g} -> {window.mean:.4g})"
        elif reference.categories:
            reason += f" ({_moved_category(reference, window)})"
        return Check(
            name="distribution",
            effect=stats.jensen_shannon(before, after),
            threshold=self._min_distance,
            p_value=p_value,
            p_adjusted=p_value,
            drifted=False,
            reason=reason,
        )

    def _share(self, name: str, words: str, before: int, after: int, p_value: float) -> Check:
        old, new = before / self._rows_reference, after / self._rows
        return Check(
            name=name,
            effect=new - old,
            threshold=self._min_share,
            p_value=p_value,
            p_adjusted=p_value,
            drifted=False,
            reason=f"{words} {old:.1%} -> {new:.1%}",
        )


def _outside(reference: ColumnProfile) -> tuple[str, str, list[int]] | None:
    """Name, words and bins of values that the reference did not have, or None where that has no meaning."""
    if reference.kind == "numeric" and reference.edges:
        return "out of range", "values out of the reference's range", [0, -1]
    if reference.kind == "categorical" and reference.tail is None:
        return "new values", "values that are no frequent category of the reference", [-1]
    return None


def _moved_category(reference: ColumnProfile, window: WindowColumn) -> str:
    old = np.array(reference.counts) / max(sum(reference.counts), 1)
    new = window.counts / max(int(window.counts.sum()), 1)
    most = int(np.abs(new - old).argmax())
    name = repr(reference.categories[most]) if most < len(reference.categories) else "other values"
    return f"{name} {old[most]:.1%} -> {new[most]:.1%}"


def _remarks(reference: ColumnProfile, window: WindowColumn, rows: int) -> str:
    """What a reader should know of a column whether it drifted or not."""
    remarks = []
    if rows and window.missing == rows:
        remarks.append("every value is missing")
    if reference.kind == "empty":
        remarks.append("the reference has no value")
    elif reference.distinct == 1:
        remarks.append("the reference has one value only")
    if window.infinite:
        remarks.append(f"{window.infinite} infinite values")
    return "; ".join(remarks)


def _new_column(name: str) -> ColumnDrift:
    return ColumnDrift(
        name=name, state="new column", reason="the reference does not have this column, so it is not compared"
    )


def _histogram(reference: ColumnProfile, window: WindowColumn) -> Histogram | None:
    before, after = np.array(reference.counts, dtype=np.float64), window.counts
    if not before.size:
        return None
    names = (*reference.categories, "other values")
    if reference.kind == "numeric":
        edges = [f"{edge:.4g}" for edge in reference.edges]
        inner = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
        names = (f"below {edges[0]}", *inner, f"from {edges[-1]}") if edges else ("any",)
    return Histogram(
        names=names,
        before=tuple((before / max(before.sum(), 1)).round(6).tolist()),
        after=tuple((after / max(int(after.sum()), 1)).round(6).tolist()),
    )


def _decide(
    found: list[ColumnDrift], together: MultivariateDrift | None, false_alarm_rate: float
) -> tuple[list[ColumnDrift], MultivariateDrift | None]:
    """Correct the p-values of all checks together and give each column its verdict."""
    p_values = [check.p_value for column in found for check in column.checks]
    whole = [] if together is None or together.p_value is None else [together.p_value]
    corrected = stats.holm([*whole, *p_values])
    if together is not None and together.effect is not None and together.threshold is not None:
        far = abs(together.effect) >= together.threshold
        together = replace(together, p_value=corrected[0], drifted=far and corrected[0] <= false_alarm_rate)
    adjusted = iter(corrected[len(whole) :])
    decided = []
    for column in found:
        checks = tuple(_judged(check, next(adjusted), false_alarm_rate) for check in column.checks)
        decided.append(_verdict(column, checks) if checks else column)
    return decided, together


def _judged(check: Check, p_adjusted: float, false_alarm_rate: float) -> Check:
    drifted = p_adjusted <= false_alarm_rate and abs(check.effect) >= check.threshold
    return replace(check, p_adjusted=p_adjusted, drifted=drifted)


def _verdict(column: ColumnDrift, checks: tuple[Check, ...]) -> ColumnDrift:
    moved = [check for check in checks if check.drifted]
    deciding = min(moved or checks, key=lambda check: check.p_adjusted)
    state: State = "drifted" if moved else "ok"
    words = [check.reason for check in moved] or ["no drift"]
    return replace(
        column,
        state=state,
        drifted=bool(moved),
        p_value=deciding.p_adjusted,
        reason="; ".join([*words, column.reason] if column.reason else words),
        checks=checks,
    )


def _withheld(column: ColumnDrift, rows_reference: int, rows: int, min_rows: int) -> ColumnDrift:
    """The column without a verdict; states that need no statistics stay visible in the reason."""
    if column.state == "new column":
        return column
    reason = _too_few(rows_reference, rows, min_rows)
    return replace(
        column,
        state="not enough data",
        drifted=False,
        reason=f"{reason}; {column.reason}" if column.reason else reason,
    )


def _too_few(rows_reference: int, rows: int, min_rows: int) -> str:
    which, have = ("window", rows) if rows < min_rows or not rows else ("reference", rows_reference)
    return f"not enough data: the {which} has {have} rows, {max(min_rows, 1)} are needed"


def _summary(found: list[ColumnDrift], enough: bool, rows_reference: int, rows: int, min_rows: int) -> str:
    if not enough:
        return _too_few(rows_reference, rows, min_rows)
    moved = [column.name for column in found if column.drifted]
    compared = sum(1 for column in found if column.state not in ("new column", "not compared"))
    if not moved:
        return f"none of {compared} columns drifted"
    return f"{len(moved)} of {compared} columns drifted: {', '.join(moved)}"
