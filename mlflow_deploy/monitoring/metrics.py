"""Quality metrics with confidence intervals, each by a method that is named in the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mlflow_deploy.monitoring.answers import Answers, Codes, Floats
from mlflow_deploy.monitoring.definitions import LOWER_IS_BETTER as LOWER_IS_BETTER

FEW_CLASSES = 10
"""Up to so many classes, each gets its own precision, recall and F1."""

_SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric with its confidence interval.

    Attributes:
        value: None when it is not defined on these rows; `reason` says why.
        low: lower end of the confidence interval.
        high: upper end.
        std_error: standard error, for comparisons.
        rows: rows it was computed from: those of the class for a precision or recall, else all.
        method: how the interval was found: `wilson` (shares), `delong` (ROC AUC), `normal` (means), `delta`
            (functions of means), `order statistics` (medians).
    """

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    std_error: float | None = None
    rows: int = 0
    method: str = ""
    reason: str = ""


def measure(answers: Answers, confidence: float = 0.95) -> dict[str, Metric]:
    """Every metric of the task by name; empty when nothing can be judged."""
    if not answers.judged or answers.task is None:
        return {}
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    found = _classification(answers, z) if answers.task == "classification" else _regression(answers, z)
    return {metric.name: metric for metric in found}


def wilson(hits: float, rows: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share of `hits` in `rows`."""
    share = hits / rows
    centre = share + z * z / (2.0 * rows)
    spread = z * math.sqrt(share * (1.0 - share) / rows + (z / (2.0 * rows)) ** 2)
    scale = 1.0 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def auc_parts(scores: Floats, positive: npt.NDArray[np.bool_]) -> tuple[float, Floats]:
    """ROC AUC and each row's part in its error, by DeLong's method; both classes must be there.

    Returns:
        The AUC, and an array of shape [rows] whose sum of squares is DeLong's variance.
    """
    above, below = scores[positive], scores[~positive]
    m, n = above.size, below.size
    ranks = _midranks(scores)
    wins = (ranks[positive] - _midranks(above)) / n
    losses = 1.0 - (ranks[~positive] - _midranks(below)) / m
    auc = float(wins.mean())
    parts = np.empty(scores.size)
    parts[positive] = (wins - auc) / math.sqrt(m * max(m - 1, 1))
    parts[~positive] = (losses - auc) / math.sqrt(n * max(n - 1, 1))
    return auc, parts


def _midranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2.0)[inverse.reshape(-1)])


def _classification(answers: Answers, z: float) -> list[Metric]:
    truth, predicted, names = answers.truth_codes, answers.predicted_codes, answers.classes
    right = truth == predicted
    found = [_share("accuracy", float(right.sum()), right.size, z)]
    parts = {name: np.zeros(right.size) for name in ("precision", "recall", "f1")}
    values: dict[str, list[float]] = {name: [] for name in parts}
    per_class: list[Metric] = []
    for code, name in enumerate(names):
        is_true, is_predicted = truth == code, predicted == code
        metrics, influences = _of_class(is_true, is_predicted, z)
        if len(names) <= FEW_CLASSES:
            per_class += [
                Metric(**{**vars(metric), "name": f"{metric.name}/{name}"}) for metric in metrics.values()
            ]
        if len(names) == 2 and code == 1:
            found += metrics.values()
        if is_true.any() or is_predicted.any():
            # A class that never occurs says nothing; one that is never predicted has a precision of 0.
            for key, metric in metrics.items():
                values[key].append(metric.value or 0.0)
                parts[key] += influences[key]
    for key, of_classes in values.items():
        value, count = float(np.mean(of_classes)), len(of_classes)
        found.append(_delta(f"{key}_macro", value, parts[key] / count, z, bounds=(0.0, 1.0), share=True))
    return found + _probabilistic(answers, z) + per_class


def _of_class(
    is_true: npt.NDArray[np.bool_], is_predicted: npt.NDArray[np.bool_], z: float
) -> tuple[dict[str, Metric], dict[str, Floats]]:
    """Precision, recall and F1 of one class, and each row's influence on them."""
    hits, true, predicted = int((is_true & is_predicted).sum()), int(is_true.sum()), int(is_predicted.sum())
    rows, both = is_true.size, is_true & is_predicted
    metrics = {
        "precision": _share("precision", hits, predicted, z, "the class was never predicted"),
        "recall": _share("recall", hits, true, z, "the class has no label"),
    }
    influences = {
        "precision": is_predicted * (is_true - hits / max(predicted, 1)) * (rows / max(predicted, 1)),
        "recall": is_true * (is_predicted - hits / max(true, 1)) * (rows / max(true, 1)),
    }
    total = true + predicted
    value = 2.0 * hits / max(total, 1)
    influence = (2.0 * both - value * (is_true.astype(float) + is_predicted)) * (rows / max(total, 1))
    metrics["f1"] = (
        _delta("f1", value, influence, z, bounds=(0.0, 1.0), share=True)
        if total
        else Metric(name="f1", reason="the class does not occur")
    )
    influences["f1"] = influence
    return metrics, influences


def _probabilistic(answers: Answers, z: float) -> list[Metric]:
    if answers.probabilities is None:
        return []
    probabilities, truth = answers.probabilities, answers.truth_codes
    of_truth = np.clip(probabilities[np.arange(truth.size), truth], _SMALLEST, 1.0)
    if probabilities.shape[1] == 2:
        squares = (probabilities[:, 1] - truth) ** 2
    else:
        squares = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1)
    return [
        _auc(probabilities, truth, z),
        _mean("log_loss", -np.log(of_truth), z, bounds=(0.0, math.inf)),
        _mean("brier", squares, z, bounds=(0.0, 2.0)),
    ]


def _auc(probabilities: Floats, truth: Codes, z: float) -> Metric:
    """Of two classes, that of the positive one; of more, the mean of each class against the rest."""
    present = np.unique(truth)
    if present.size < 2:
        return Metric(name="roc_auc", rows=truth.size, reason="the labels have one class only")
    targets = [1] if probabilities.shape[1] == 2 else present.tolist()
    found = [auc_parts(probabilities[:, code], truth == code) for code in targets]
    value = float(np.mean([auc for auc, _ in found]))
    error = math.sqrt(float((np.mean([parts for _, parts in found], axis=0) ** 2).sum()))
    fewest = int(np.bincount(truth)[present].min())
    if error == 0.0:
        # Without any spread, the rarer class bounds what can be known, as for a share.
        low, high = wilson(value * fewest, fewest, z)
        return Metric(name="roc_auc", value=value, low=low, high=high, std_error=(high - low) / (2 * z),
                      rows=truth.size, method="wilson")  # fmt: skip
    return Metric(
        name="roc_auc",
        value=value,
        low=max(0.0, value - z * error),
        high=min(1.0, value + z * error),
        std_error=error,
        rows=truth.size,
        method="delong",
    )


def _regression(answers: Answers, z: float) -> list[Metric]:
    errors = answers.predicted - answers.truth
    # Scaled first, because the squares of very large values overflow.
    scale = float(np.abs(errors).max()) or 1.0
    absolute, squares = np.abs(errors), (errors / scale) ** 2
    mse = float(squares.mean())
    rmse = math.sqrt(mse)
    influence = (squares - mse) / (2.0 * rmse) if rmse else squares
    return [
        _mean("mae", absolute, z, bounds=(0.0, math.inf)),
        _delta("rmse", rmse * scale, influence * scale, z, bounds=(0.0, math.inf)),
        _median("median_ae", absolute, z),
        _mean("bias", errors, z),
        _r2(answers.truth, errors, z),
    ]


def _r2(truth: Floats, errors: Floats, z: float) -> Metric:
    scale = float(np.abs(truth).max()) or 1.0
    deviations = (truth / scale - float((truth / scale).mean())) ** 2
    variance = float(deviations.mean())
    # Rounding leaves a trace of variance in constant values.
    if truth.size < 2 or math.sqrt(variance) <= 1e-12:
        return Metric(name="r2", rows=truth.size, reason="all labels are equal")
    squares = (errors / scale) ** 2
    mse = float(squares.mean())
    influence = -(squares - mse) / variance + mse / variance**2 * (deviations - variance)
    return _delta("r2", 1.0 - mse / variance, influence, z, bounds=(-math.inf, 1.0))


def _share(name: str, hits: float, rows: int, z: float, reason: str = "") -> Metric:
    if not rows:
        return Metric(name=name, reason=reason)
    low, high = wilson(hits, rows, z)
    # Agresti and Coull's share, so that a share of 0 or 1 is not taken to be certain.
    share = (hits + 2.0) / (rows + 4.0)
    error = math.sqrt(share * (1.0 - share) / (rows + 4.0))
    return Metric(
        name=name, value=hits / rows, low=low, high=high, std_error=error, rows=rows, method="wilson"
    )


def _mean(name: str, values: Floats, z: float, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Metric:
    mean = float(values.mean())
    metric = _delta(name, mean, values - mean, z, bounds=bounds)
    return Metric(**{**vars(metric), "method": "normal"})


def _delta(
    name: str,
    value: float,
    influence: Floats,
    z: float,
    *,
    bounds: tuple[float, float],
    share: bool = False,
) -> Metric:
    """The interval of a smooth function of means, from each row's first-order influence on it."""
    rows = influence.size
    error = float(np.std(influence, ddof=min(1, rows - 1))) / math.sqrt(rows)
    if share and error == 0.0:
        low, high = wilson(value * rows, rows, z)
        return Metric(name=name, value=value, low=low, high=high, std_error=(high - low) / (2 * z), rows=rows,
                      method="wilson")  # fmt: skip
    return Metric(
        name=name,
        value=value,
        low=max(bounds[0], value - z * error),
        high=min(bounds[1], value + z * error),
        std_error=error,
        rows=rows,
        method="delta",
    )


def _median(name: str, values: Floats, z: float) -> Metric:
    ordered, rows = np.sort(values), values.size
    spread = z * math.sqrt(rows) / 2.0
    low = float(ordered[max(0, math.floor(rows / 2.0 - spread))])
    high = float(ordered[min(rows - 1, math.ceil(rows / 2.0 + spread))])
    return Metric(name=name, value=float(np.median(ordered)), low=low, high=high,
                  std_error=(high - low) / (2 * z), rows=rows, method="order statistics")  # fmt: skip


ALIASES: Mapping[str, str] = {
    "accuracy_score": "accuracy",
    "precision_score": "precision",
    "recall_score": "recall",
    "f1_score": "f1",
    "roc_auc_score": "roc_auc",
    "auc": "roc_auc",
    "brier_score": "brier",
    "brier_score_loss": "brier",
    "mean_absolute_error": "mae",
    "root_mean_squared_error": "rmse",
    "median_absolute_error": "median_ae",
    "r2_score": "r2",
}
"""Names under which scikit-learn and MLflow log the same metrics."""
