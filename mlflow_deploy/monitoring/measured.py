"""Quality of a model on labelled rows: metrics with intervals, and a verdict beside its validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.monitoring.answers import Answers, Task, pair
from mlflow_deploy.monitoring.metrics import ALIASES, LOWER_IS_BETTER, Metric, measure
from mlflow_deploy.monitoring.profile import PREDICTION, ReferenceProfile
from mlflow_deploy.monitoring.stats import holm
from mlflow_deploy.monitoring.tables import Data, open_table

if TYPE_CHECKING:
    import pandas as pd

Verdict: TypeAlias = Literal["ok", "worse", "not enough data", "not compared", "not measured"]

MIN_ROWS = 200
MIN_CLASS_ROWS = 20
TOLERANCE = 0.02
POWER = 0.8

_NOT_COMPARED = frozenset({"bias"})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric beside its value on the reference rows.

    Attributes:
        change: value less reference.
        threshold: smallest loss that counts.
        p_value: chance of such a loss without any, adjusted for all metrics compared (Holm); None without a
            test.
        detectable: smallest loss that would be found in 8 of 10 windows of this size, the correction for
            several metrics left out.
        reason: the verdict in words.
    """

    name: str
    state: Verdict
    reason: str
    value: float | None = None
    reference: float | None = None
    change: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    detectable: float | None = None


@dataclass(frozen=True, kw_only=True)
class PerformanceReport:
    """How good the predictions of a window were.

    Attributes:
        state: `ok` or `worse` than the reference, `not enough data` for a verdict, `not compared` without a
            reference, `not measured` when no metric can be computed.
        reason: the verdict in one sentence.
        kind: the task; None when it was not measured.
        rows: rows of the window.
        judged: rows with a usable prediction and label.
        left_out: the other rows, by cause.
        classes: of a classification; of two, the second is the positive one.
        metrics: by name, with confidence intervals of level `confidence`.
        comparisons: by name, the metrics that the reference has too.
        false_alarm_rate: chance that an unchanged model is called worse, at most.
        notes: what a reader should know of the data.
    """

    state: Verdict
    reason: str
    kind: Task | None
    rows: int
    judged: int
    confidence: float
    false_alarm_rate: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per metric with its interval and, when there is one, the reference and the verdict."""
        import pandas as pd

        shown = ("value", "low", "high", "method", "rows")
        compared = ("reference", "p_value", "detectable", "state", "reason")
        nothing = Comparison(name="", state="not compared", reason="")
        return pd.DataFrame(
            [
                {"metric": name}
                | {key: getattr(metric, key) for key in shown}
                | {key: getattr(self.comparisons.get(name, nothing), key) for key in compared}
                for name, metric in self.metrics.items()
            ],
            columns=["metric", *shown, *compared],
        )


Reference: TypeAlias = Mapping[str, float] | PerformanceReport | ReferenceProfile


def performance(
    data: Data,
    labels: Any,
    *,
    predictions: Any = PREDICTION,
    probabilities: Any = None,
    kind: str = "auto",
    classes: Sequence[Any] | None = None,
    threshold: float = 0.5,
    reference: Reference | None = None,
    reference_rows: int | None = None,
    confidence: float = 0.95,
    false_alarm_rate: float = 0.01,
    min_rows: int = MIN_ROWS,
    tolerance: float = TOLERANCE,
) -> PerformanceReport:
    """Measure the predictions of a window against the labels, and compare with the validation of the version.

    A metric is worse when it lost at least `tolerance` of its reference value *and* a one-sided test, corrected
    by Holm over all metrics compared, says that chance does not explain it.

    Args:
        data: the rows: a pandas DataFrame, a pyarrow Table, or the path of a Parquet file or folder.
        labels: name of a column of `data`, or one true value per row.
        predictions: name of a column of `data`, or one value per row: classes, numbers, or the probability of
            the positive class; or probabilities of shape [rows, classes].
        probabilities: the same probabilities where `predictions` has the classes.
        kind: `classification`, `regression` or `auto`: texts, booleans and few whole numbers are classes.
        classes: the classes in the order of the probabilities; of two, the second is the positive one.
        threshold: probability of the positive class from which on it is predicted.
        reference: metrics of the validation by name, an earlier report, or a profile built with predictions and
            labels.
        reference_rows: rows behind a reference that is a mapping; without it the values are taken as exact.
        confidence: level of the intervals.
        false_alarm_rate: accepted chance that an unchanged model is called worse.
        min_rows: fewer labelled rows than that are not compared, nor fewer than 20 of a class.
        tolerance: smallest loss that counts, as a share of the reference value.

    Raises:
        DataError: the data cannot be read at all, or there are not as many values as rows.
        ConfigError: a setting is out of its range.
    """
    _check(kind, confidence, false_alarm_rate)
    table = open_table(data)
    if classes is None and isinstance(reference, PerformanceReport):
        classes = reference.classes or None
    elif classes is None and isinstance(reference, ReferenceProfile) and reference.quality is not None:
        classes = reference.quality.classes or None
    answers = pair(
        table,
        labels,
        predictions,
        kind=kind,
        probabilities=probabilities,
        classes=classes,
        threshold=threshold,
    )
    metrics = measure(answers, confidence)
    known = _known(reference, metrics, reference_rows)
    compared = _compare(answers, metrics, known, false_alarm_rate, min_rows, tolerance)
    state, reason = _verdict(answers, metrics, compared)
    notes = list(answers.notes)
    if isinstance(reference, Mapping) and reference_rows is None and compared:
        notes.append("the reference is taken as exact: give reference_rows to count its own error")
    return PerformanceReport(
        state=state,
        reason=reason,
        kind=answers.task,
        rows=table.rows,
        judged=answers.judged,
        confidence=confidence,
        false_alarm_rate=false_alarm_rate,
        left_out=answers.left_out,
        classes=answers.classes,
        metrics=metrics,
        comparisons=compared,
        notes=tuple(notes),
    )


def _check(kind: str, confidence: float, false_alarm_rate: float) -> None:
    if kind not in ("auto", "classification", "regression"):
        raise ConfigError(f"kind must be auto, classification or regression, not {kind!r}")
    for name, value in (("confidence", confidence), ("false_alarm_rate", false_alarm_rate)):
        if not 0.0 < value < 1.0:
            raise ConfigError(f"{name} must lie between 0 and 1, not {value}")


def _known(
    reference: Reference | None, metrics: Mapping[str, Metric], rows: int | None
) -> dict[str, tuple[float, float]]:
    """Value and standard error of the reference's metrics by our names."""
    if reference is None:
        return {}
    if isinstance(reference, ReferenceProfile):
        measured = () if reference.quality is None else reference.quality.metrics
    elif isinstance(reference, PerformanceReport):
        measured = tuple(reference.metrics.values())
    else:
        return {
            name: (value, _error_at(metrics.get(name), rows))
            for name, value in ((ALIASES.get(key, key), float(value)) for key, value in reference.items())
            if math.isfinite(value)
        }
    return {
        metric.name: (metric.value, metric.std_error or 0.0)
        for metric in measured
        if metric.value is not None
    }


def _error_at(metric: Metric | None, rows: int | None) -> float:
    """Standard error that the metric would have on another number of rows."""
    if metric is None or metric.std_error is None or not rows:
        return 0.0
    return metric.std_error * math.sqrt(metric.rows / rows)


def _compare(
    answers: Answers,
    metrics: Mapping[str, Metric],
    known: Mapping[str, tuple[float, float]],
    rate: float,
    min_rows: int,
    tolerance: float,
) -> dict[str, Comparison]:
    names = [name for name in metrics if name in known and name not in _NOT_COMPARED]
    lacking = {name: _lacking(answers, metrics[name], min_rows) for name in names}
    tested = [name for name in names if not lacking[name]]
    found = {}
    chances = {}
    for name in tested:
        metric, (reference, error) = metrics[name], known[name]
        loss = _loss(name, metric.value, reference)
        spread = math.hypot(metric.std_error or 0.0, error)
        chances[name] = 0.5 * math.erfc(loss / spread / math.sqrt(2.0)) if spread else float(loss <= 0.0)
        found[name] = (loss, spread)
    adjusted = dict(zip(tested, holm([chances[name] for name in tested]), strict=True))
    compared = {}
    for name in names:
        metric, (reference, _) = metrics[name], known[name]
        if lacking[name]:
            compared[name] = Comparison(
                name=name,
                state="not enough data",
                reason=lacking[name],
                value=metric.value,
                reference=reference,
            )
            continue
        loss, spread = found[name]
        least = tolerance * abs(reference)
        worse = adjusted[name] <= rate and loss >= least and loss > 0.0
        needed = NormalDist().inv_cdf(1.0 - rate) + NormalDist().inv_cdf(POWER)
        assert metric.value is not None
        compared[name] = Comparison(
            name=name,
            state="worse" if worse else "ok",
            reason=f"{name} {reference:.4g} -> {metric.value:.4g}",
            value=metric.value,
            reference=reference,
            change=metric.value - reference,
            threshold=least,
            p_value=adjusted[name],
            detectable=max(least, needed * spread),
        )
    return compared


def _loss(name: str, value: float | None, reference: float) -> float:
    """How much worse a value is than the reference, positive when it is."""
    assert value is not None
    return value - reference if name in LOWER_IS_BETTER else reference - value


def _lacking(answers: Answers, metric: Metric, min_rows: int) -> str:
    """Why a metric cannot be compared, or nothing."""
    if metric.value is None:
        return metric.reason
    if answers.judged < min_rows:
        return f"{answers.judged} labelled rows, {min_rows} are needed"
    if metric.rows < MIN_CLASS_ROWS:
        return f"{metric.rows} rows of the class, {MIN_CLASS_ROWS} are needed"
    if metric.name == "roc_auc":
        fewest = min((answers.truth_codes == code).sum() for code in set(answers.truth_codes.tolist()))
        if fewest < MIN_CLASS_ROWS:
            return f"{fewest} rows of the rarest class, {MIN_CLASS_ROWS} are needed"
    return ""


def _verdict(
    answers: Answers, metrics: Mapping[str, Metric], compared: Mapping[str, Comparison]
) -> tuple[Verdict, str]:
    if not metrics:
        why = answers.reason or "no row has both a usable prediction and a usable label"
        causes = "; ".join(f"{cause}: {count}" for cause, count in answers.left_out.items())
        return "not measured", f"{why} ({causes})" if causes else why
    if not compared:
        return (
            "not compared",
            f"{len(metrics)} metrics measured on {answers.judged} rows, without a reference",
        )
    worse = [entry for entry in compared.values() if entry.state == "worse"]
    if worse:
        return "worse", "; ".join(entry.reason for entry in worse)
    enough = [entry for entry in compared.values() if entry.state == "ok"]
    if not enough:
        return "not enough data", next(iter(compared.values())).reason
    return "ok", f"none of {len(enough)} metrics is worse than on the reference"
