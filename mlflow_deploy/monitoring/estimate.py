"""Estimate the quality of predictions whose labels have not come yet, from the scores or the features alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.monitoring.answers import Floats, class_codes, given_column, given_matrix
from mlflow_deploy.monitoring.measured import MIN_ROWS, PerformanceReport
from mlflow_deploy.monitoring.metrics import ALIASES
from mlflow_deploy.monitoring.profile import PREDICTION, ReferenceProfile
from mlflow_deploy.monitoring.quality import ReferenceQuality, term_columns
from mlflow_deploy.monitoring.tables import Data, Table, open_table

State: TypeAlias = Literal["estimated", "not enough data", "not estimated"]

ASSUMPTION = (
    "an estimate, not a measurement: it assumes that rows which look alike still have the same chance of each "
    "label as in the reference (no concept change)"
)
SCORE_METRICS = ("roc_auc", "accuracy", "precision", "recall", "f1", "log_loss", "brier")
LOSS_METRICS = ("accuracy", "mae", "rmse")

_DRAWS = 100
_DRAW_ROWS = 20_000
_SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class PerformanceEstimate:
    """What a metric probably is on rows without labels.

    Attributes:
        value: None unless `state` is `estimated`; `reason` says why.
        low: lower end of the band: the error of this window's size and of the reference, if the assumption
            holds. A concept change is not in it.
        high: upper end.
        reference: the metric measured on the reference.
        method: `confidence-based` (from calibrated scores) or `direct loss` (a model of the loss).
        rows: rows that were used.
        unfamiliar: largest share, over the columns, of rows in values that the reference hardly had (under
            0.1 %); there the estimate guesses.
        assumption: what must hold for it.
    """

    metric: str
    state: State
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    method: str = ""
    rows: int = 0
    unfamiliar: float | None = None
    assumption: str = ASSUMPTION

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EstimateCheck:
    """An estimate beside the truth that came later.

    Attributes:
        agrees: bands of estimate and measurement overlap; None when one of them is lacking.
        difference: estimate less truth.
    """

    metric: str
    agrees: bool | None
    reason: str
    difference: float | None = None


def estimate_performance(
    profile: ReferenceProfile,
    data: Data,
    metric: str = "roc_auc",
    *,
    predictions: Any = PREDICTION,
    probabilities: Any = None,
    confidence: float = 0.95,
    min_rows: int = MIN_ROWS,
) -> PerformanceEstimate:
    """Estimate a metric on rows without labels; needs a profile built with predictions and labels.

    Two classes with probabilities: each score is turned into the chance of a positive label, by the reference's
    calibration, and the metric's expected value follows. Everything else: a model of
    the loss given features and prediction, fitted on the reference, is averaged over the rows.

    Args:
        data: the features, under the names of the reference.
        metric: with probabilities of two classes `roc_auc`, `accuracy`, `precision`, `recall`, `f1`, `log_loss`
            or `brier`; with classes only `accuracy`; of a regression `mae` or `rmse`.
        predictions: name of a column of `data`, or one value per row, of the kind the profile was built with.
        probabilities: as in `build_profile`.
        confidence: level of the band.
        min_rows: with fewer rows nothing is estimated.

    Raises:
        DataError: the data cannot be read at all, or there are not as many values as rows.
        ConfigError: no such metric is estimated, whatever the profile.
    """
    metric = ALIASES.get(metric, metric)
    if metric not in {*SCORE_METRICS, *LOSS_METRICS}:
        raise ConfigError(
            f"The metric {metric!r} cannot be estimated",
            hint=f"Choose one of {', '.join(dict.fromkeys((*SCORE_METRICS, *LOSS_METRICS)))}",
        )
    table = open_table(data)
    quality = profile.quality
    if quality is None:
        return _none(metric, "the profile has no predictions with labels: build it with both")
    measured = {entry.name: entry for entry in quality.metrics}.get(metric)
    if table.rows < min_rows:
        return _none(metric, f"{table.rows} rows, {min_rows} are needed", "not enough data")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    own = {name for name in (predictions, probabilities) if isinstance(name, str)}
    given = probabilities if probabilities is not None else predictions
    if quality.scores and metric in SCORE_METRICS:
        found = _from_scores(quality, table, own, metric, given)
    else:
        found = _from_losses(quality, table, own, metric, predictions, probabilities)
    if isinstance(found, str):
        return _none(metric, found)
    value, error, rows, unfamiliar = found
    if rows < min_rows:
        return _none(
            metric, f"{rows} rows with a usable prediction, {min_rows} are needed", "not enough data"
        )
    if not math.isfinite(value):
        return _none(metric, "the metric is not defined on what these rows are expected to be")
    spread = z * math.hypot(error, (measured.std_error or 0.0) if measured else 0.0)
    bounded = metric not in ("mae", "rmse", "log_loss")
    reason = f"estimated from {rows} rows without labels"
    if unfamiliar > 0.1:
        reason += f"; {unfamiliar:.0%} of the rows have values the reference hardly had"
    return PerformanceEstimate(
        metric=metric,
        state="estimated",
        reason=reason,
        value=value,
        low=max(0.0, value - spread),
        high=min(1.0, value + spread) if bounded else value + spread,
        reference=None if measured is None else measured.value,
        method="confidence-based" if quality.scores and metric in SCORE_METRICS else "direct loss",
        rows=rows,
        unfamiliar=unfamiliar,
    )


def check_estimate(estimate: PerformanceEstimate, report: PerformanceReport) -> EstimateCheck:
    """Compare an estimate with the measurement of the same rows once their labels came."""
    truth = report.metrics.get(estimate.metric)
    if estimate.value is None or truth is None or truth.value is None:
        return EstimateCheck(metric=estimate.metric, agrees=None, reason="estimate or measurement is lacking")
    assert estimate.low is not None
    assert estimate.high is not None
    assert truth.low is not None
    assert truth.high is not None
    agrees = estimate.low <= truth.high and truth.low <= estimate.high
    words = f"{estimate.metric} was estimated as {estimate.value:.4g} and is {truth.value:.4g}"
    return EstimateCheck(
        metric=estimate.metric,
        agrees=agrees,
        reason=words if agrees else f"{words}: the labels no longer follow from the features as they did",
        difference=estimate.value - truth.value,
    )


def _none(metric: str, reason: str, state: State = "not estimated") -> PerformanceEstimate:
    return PerformanceEstimate(metric=metric, state=state, reason=reason)


class _Features:
    """The table without the columns that hold the answers."""

    def __init__(self, table: Table, own: set[str]) -> None:
        self.names = tuple(name for name in table.names if name not in own)
        self.rows = table.rows
        self.column = table.column


def _from_scores(
    quality: ReferenceQuality, table: Table, own: set[str], metric: str, given: Any
) -> tuple[float, float, int, float] | str:
    if quality.chances[-1] <= 0.0 or quality.chances[0] >= 1.0:
        return "the reference has labels of one class only"
    matrix = given_matrix(table, given)
    if matrix is not None:
        if matrix.shape[1] != 2:
            return f"{matrix.shape[1]} classes have a probability, the reference has 2"
        scores = matrix[:, 1]
    else:
        column = given_column(table, given, "prediction")
        if isinstance(column, str):
            return column
        if column.kind == "empty":
            return "no prediction is a probability"
        if column.kind != "numeric":
            return f"the reference has probabilities, the predictions are {column.dtype}"
        scores = column.numbers
    with np.errstate(invalid="ignore"):
        usable = np.flatnonzero((scores >= 0.0) & (scores <= 1.0))
    if not usable.size:
        return "no prediction is a probability"
    codes = np.where(np.nan_to_num(scores) >= quality.threshold, 1, 0)
    pairs = np.column_stack((1.0 - scores, scores))
    _, unfamiliar = _expected_loss(quality, _Features(table, own), "accuracy", codes, pairs)
    chances = quality.calibrated(scores[usable])
    scores = scores[usable]
    value = _expected(metric, scores, chances, quality.threshold)
    part = np.unique(np.linspace(0, scores.size - 1, min(_DRAW_ROWS, scores.size)).astype(np.int64))
    rng = np.random.default_rng(0)
    draws = [
        _expected(
            metric, scores[part], (rng.random(part.size) < chances[part]).astype(float), quality.threshold
        )
        for _ in range(_DRAWS)
    ]
    defined = [draw for draw in draws if math.isfinite(draw)]
    error = float(np.std(defined)) * math.sqrt(part.size / scores.size) if defined else math.inf
    return value, error, int(usable.size), unfamiliar


def _expected(metric: str, scores: Floats, chances: Floats, threshold: float) -> float:
    """The metric's expected value when each row is positive with its chance; NaN where it is not defined."""
    positive = scores >= threshold
    hits = float(chances[positive].sum())
    if metric == "roc_auc":
        return _expected_auc(scores, chances)
    if metric == "accuracy":
        return float(np.where(positive, chances, 1.0 - chances).mean())
    if metric == "brier":
        return float((chances * (1.0 - scores) ** 2 + (1.0 - chances) * scores**2).mean())
    if metric == "log_loss":
        inner = np.clip(scores, _SMALLEST, 1.0 - _SMALLEST)
        return float(-(chances * np.log(inner) + (1.0 - chances) * np.log1p(-inner)).mean())
    rows = {
        "precision": float(positive.sum()),
        "recall": float(chances.sum()),
        "f1": (float(positive.sum()) + float(chances.sum())) / 2.0,
    }[metric]
    return hits / rows if rows else math.nan


def _expected_auc(scores: Floats, chances: Floats) -> float:
    """Expected share of pairs of a positive and a negative row in the right order; no row pairs with itself."""
    _, place = np.unique(scores, return_inverse=True)
    place = place.reshape(-1)
    positive = np.bincount(place, weights=chances)
    negative = np.bincount(place, weights=1.0 - chances)
    below = np.cumsum(negative) - negative
    itself = float((chances * (1.0 - chances)).sum())
    pairs = float(positive.sum() * negative.sum()) - itself
    right = float((positive * (below + negative / 2.0)).sum()) - itself / 2.0
    return right / pairs if pairs > 0.0 else math.nan


def _from_losses(
    quality: ReferenceQuality, table: Table, own: set[str], metric: str, predictions: Any, probabilities: Any
) -> tuple[float, float, int, float] | str:
    if quality.model is None or metric not in quality.model.losses:
        return f"{metric} cannot be estimated for a {quality.task} profiled like this one"
    matrix = given_matrix(table, probabilities if probabilities is not None else predictions)
    if matrix is not None:
        predicted = np.nan_to_num(matrix, nan=-1.0).argmax(axis=1)
        usable = ~np.isnan(matrix).any(axis=1)
    else:
        column = given_column(table, predictions, "prediction")
        if isinstance(column, str):
            return column
        if quality.classes:
            predicted = class_codes(column, quality.classes)
            usable = predicted >= 0
        elif column.kind == "numeric":
            predicted, usable = column.numbers, np.isfinite(column.numbers)
        else:
            return f"the reference predicts numbers, the predictions are {column.dtype}"
    if not usable.any():
        return "no prediction is one that the reference could have"
    losses, unfamiliar = _expected_loss(quality, _Features(table, own), metric, predicted, matrix)
    index = quality.model.losses.index(metric)
    mean = max(float(losses[usable].mean()), 0.0)
    error = quality.model.residuals[index] / math.sqrt(float(usable.sum()))
    if metric == "rmse":
        root = math.sqrt(mean)
        return root, error / (2.0 * root) if root else error, int(usable.sum()), unfamiliar
    return (min(mean, 1.0) if metric == "accuracy" else mean), error, int(usable.sum()), unfamiliar


def _expected_loss(
    quality: ReferenceQuality, table: Table, loss: str, predicted: Any, probabilities: Floats | None
) -> tuple[Floats, float]:
    """The modelled loss of every row, shape [rows], and the largest share of rows in values hardly known."""
    model = quality.model
    if model is None or loss not in model.losses:
        return np.zeros(table.rows), 0.0
    index = model.losses.index(loss)
    total = np.full(table.rows, model.intercepts[index])
    terms = {term.column: term for term in model.terms}
    wanted = _Features(table, {name for name in table.names if name not in terms})
    confidence = None if probabilities is None else probabilities.max(axis=1)
    unfamiliar = 0.0
    seen = set()
    for name, column in term_columns(wanted, predicted, quality.classes, confidence):
        if name not in terms:
            continue
        seen.add(name)
        term = terms[name]
        codes = term.codes(column, table.rows)
        total += np.asarray(term.weights[index])[codes]
        rare = np.asarray(term.counts) < max(1.0, 1e-3 * sum(term.counts))
        unfamiliar = max(unfamiliar, float(rare[codes].mean()))
    for name in set(terms) - seen:
        term = terms[name]
        total += np.asarray(term.weights[index])[term.codes(None, table.rows)]
        unfamiliar = 1.0
    return total, unfamiliar
