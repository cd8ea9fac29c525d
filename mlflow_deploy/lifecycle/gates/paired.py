"""Two models on the same rows: the difference of a metric with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlflow_deploy.errors import DataError

if TYPE_CHECKING:
    from mlflow_deploy.monitoring.answers import Answers

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

RESAMPLES = 2000
_SEED = 20
_SMALLEST = 1e-15

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse"})


@dataclass(frozen=True)
class PairedDifference:
    """How much better a candidate is than a champion on the same rows.

    Attributes:
        metric: its name.
        candidate: its value.
        champion: its value.
        gain: how much better the candidate is; negative when it is worse, whichever way the metric counts.
        low: lower end of the gain's confidence interval.
        high: upper end.
        rows: rows that both answered.
        method: `paired bootstrap` or `paired delong`.
    """

    metric: str
    candidate: float
    champion: float
    gain: float
    low: float
    high: float
    rows: int
    method: str


def compare(candidate: Answers, champion: Answers, metric: str, confidence: float = 0.95) -> PairedDifference:
    """Compare two models' answers to the same rows; the pairing takes out what makes rows hard for both.

    The ROC AUC is compared by DeLong's method; all others by a percentile bootstrap over rows, with the same
    resampled rows for both.

    Raises:
        DataError: the metric is not defined for these answers, or they are not about the same rows.
    """
    common, first, second = np.intersect1d(candidate.used, champion.used, return_indices=True)
    if candidate.task != champion.task or not common.size:
        raise DataError(
            "The two versions cannot be compared",
            why=f"one is a {candidate.task}, the other a {champion.task}, with {common.size} common rows",
        )
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    if metric == "roc_auc":
        both = _binary(candidate, first, metric), _binary(champion, second, metric)
        return _delong(*both, common.size, confidence)
    if metric not in _PARTS:
        raise DataError(f"Metric {metric!r} cannot be compared", hint=f"Use one of {', '.join(METRICS)}")
    task, parts, combine = _PARTS[metric]
    if candidate.task != task:
        raise DataError(f"Metric {metric!r} is for {task}, this model is for {candidate.task}")
    ours, theirs = parts(candidate, first), parts(champion, second)
    a, b = float(combine(ours.mean(axis=0))), float(combine(theirs.mean(axis=0)))
    draws = _bootstrap(ours, theirs, combine) * sign
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return PairedDifference(
        metric, a, b, sign * (a - b), float(low), float(high), int(common.size), "paired bootstrap"
    )


Combine = Callable[[Floats], Floats]
"""Means of the parts, shape [..., k] -> the metric, shape [...]."""


def _bootstrap(ours: Floats, theirs: Floats, combine: Combine) -> Floats:
    rng = np.random.default_rng(_SEED)
    rows = len(ours)
    both = np.concatenate([ours, theirs], axis=1)
    means = np.empty((RESAMPLES, both.shape[1]))
    for index in range(RESAMPLES):
        times = np.bincount(rng.integers(0, rows, rows), minlength=rows)
        means[index] = times @ both / rows
    width = ours.shape[1]
    return np.asarray(combine(means[:, :width]) - combine(means[:, width:]))


def _delong(
    ours: tuple[Floats, Flags],
    theirs: tuple[Floats, Flags],
    rows: int,
    confidence: float,
) -> PairedDifference:
    from mlflow_deploy.monitoring.metrics import auc_parts

    (a, our_parts), (b, their_parts) = auc_parts(*ours), auc_parts(*theirs)
    error = math.sqrt(float(((our_parts - their_parts) ** 2).sum()))
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    gain = a - b
    return PairedDifference("roc_auc", a, b, gain, gain - z * error, gain + z * error, rows, "paired delong")


# --- parts of metrics by row -------------------------------------------------------------------------------


def _binary(answers: Answers, index: Index, metric: str) -> tuple[Floats, Flags]:
    """Scores of the positive class and which rows are positive."""
    if answers.probabilities is None or len(answers.classes) != 2:
        raise DataError(f"Metric {metric!r} needs a model that answers the probability of two classes")
    positive = answers.truth_codes[index] == 1
    if positive.all() or not positive.any():
        raise DataError(f"Metric {metric!r} needs rows of both classes")
    return np.asarray(answers.probabilities[index, 1], dtype=np.float64), positive


def _right(answers: Answers, index: Index) -> Floats:
    right = answers.truth_codes[index] == answers.predicted_codes[index]
    return np.asarray(right[:, None], dtype=np.float64)


def _counts(answers: Answers, index: Index) -> Floats:
    """True positives, predicted positives and positives of the second of two classes, by row."""
    if len(answers.classes) != 2:
        raise DataError("Metric 'f1' needs two classes", why=f"there are {len(answers.classes)}")
    truth, predicted = answers.truth_codes[index] == 1, answers.predicted_codes[index] == 1
    return np.stack([truth & predicted, predicted, truth], axis=1).astype(float)


def _log_loss(answers: Answers, index: Index) -> Floats:
    return -np.log(np.maximum(_of_truth(answers, index, "log_loss"), _SMALLEST))[:, None]


def _of_truth(answers: Answers, index: Index, metric: str) -> Floats:
    """Probability that was given to the true class."""
    if answers.probabilities is None:
        raise DataError(f"Metric {metric!r} needs a model that answers with probabilities")
    chosen = answers.probabilities[index, answers.truth_codes[index]]
    return np.asarray(chosen, dtype=np.float64)


def _brier(answers: Answers, index: Index) -> Floats:
    scores, positive = _binary(answers, index, "brier")
    return np.asarray((scores - positive) ** 2)[:, None]


def _absolute(answers: Answers, index: Index) -> Floats:
    return np.abs(answers.predicted[index] - answers.truth[index])[:, None]


def _squared(answers: Answers, index: Index) -> Floats:
    return np.asarray((answers.predicted[index] - answers.truth[index]) ** 2)[:, None]


def _squared_and_spread(answers: Answers, index: Index) -> Floats:
    truth = answers.truth[index]
    truth = truth - truth.mean()
    return np.concatenate([_squared(answers, index), truth[:, None], truth[:, None] ** 2], axis=1)


def _first(means: Floats) -> Floats:
    return np.asarray(means[..., 0])


def _root(means: Floats) -> Floats:
    return np.asarray(np.sqrt(means[..., 0]))


def _f1(means: Floats) -> Floats:
    below = means[..., 1] + means[..., 2]
    return np.asarray(2 * means[..., 0] / np.where(below > 0, below, 1.0))


def _r2(means: Floats) -> Floats:
    variance = means[..., 2] - means[..., 1] ** 2
    return np.asarray(1.0 - means[..., 0] / np.maximum(variance, _SMALLEST))


_PARTS: dict[str, tuple[str, Callable[[Answers, Index], Floats], Combine]] = {
    "accuracy": ("classification", _right, _first),
    "f1": ("classification", _counts, _f1),
    "log_loss": ("classification", _log_loss, _first),
    "brier": ("classification", _brier, _first),
    "mae": ("regression", _absolute, _first),
    "rmse": ("regression", _squared, _root),
    "r2": ("regression", _squared_and_spread, _r2),
}
"""Metric -> its task, its parts by row of shape [rows, k], and the function of their means that it is."""

METRICS = (*_PARTS, "roc_auc")
