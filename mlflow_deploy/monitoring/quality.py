"""What a profile keeps of the quality on its own rows: metrics, calibration of scores, a model of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_deploy.monitoring.answers import Answers, Codes, Column, Floats, Task, pair, read_column
from mlflow_deploy.monitoring.metrics import Metric, measure
from mlflow_deploy.monitoring.tables import Table

KNOTS = 40
MIN_FIT_ROWS = 200

MAX_TERMS = 30
NUMERIC_BINS = 16
CATEGORIES = 20
FIT_ROWS = 50_000
RIDGE = 20.0
"""Rows of a bin that are needed to take half of what they say for true."""

_CHUNK = 4_096


@dataclass(frozen=True, kw_only=True)
class Term:
    """The part of one column in a loss model: a weight per bin and loss.

    Attributes:
        edges: of a numeric column; a value on an edge is above it.
        categories: of a text column.
        counts: reference rows per bin: below, between and beyond the edges, or of the categories and of all
            others; then the missing values.
        weights: per loss, the weights of the same bins.
    """

    column: str
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    def codes(self, column: Column | None, rows: int) -> Codes:
        """The bin of every row, shape [rows]; without the column, or with another type, all are missing."""
        last = len(self.counts) - 1
        if column is None or column.kind != ("categorical" if self.categories else "numeric"):
            return np.full(rows, last, dtype=np.int64)
        return _bins(column, np.asarray(self.edges), self.categories)


@dataclass(frozen=True, kw_only=True)
class LossModel:
    """Expected losses as a sum over binned columns, fitted by ridge regression.

    Attributes:
        losses: names: `accuracy` (1 when right), `mae` (absolute error), `rmse` (squared error).
        intercepts: mean of each loss on the reference.
        residuals: standard deviation of what the model leaves of each loss.
    """

    losses: tuple[str, ...]
    intercepts: tuple[float, ...]
    residuals: tuple[float, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceQuality:
    """Quality on the reference rows, and what is needed to estimate it on later rows without labels.

    Attributes:
        rows: rows with both prediction and label.
        classes: of a classification; of two, the second is the positive one.
        threshold: probability from which on the positive class is predicted.
        metrics: on the reference rows.
        scores: rising knots of the calibration of the positive class; empty without probabilities.
        chances: share of positive labels at each knot, never falling.
        model: of the losses; None with too few rows.
    """

    task: Task
    rows: int
    classes: tuple[str, ...]
    threshold: float
    metrics: tuple[Metric, ...]
    scores: tuple[float, ...] = ()
    chances: tuple[float, ...] = ()
    model: LossModel | None = None

    def calibrated(self, scores: Floats) -> Floats:
        """Probability of the positive label at each score."""
        return np.asarray(np.interp(scores, self.scores, self.chances))


def fit_quality(
    table: Table,
    labels: Any,
    predictions: Any,
    probabilities: Any = None,
    classes: Sequence[Any] | None = None,
    threshold: float = 0.5,
) -> ReferenceQuality | None:
    """Measure the reference rows and fit what later estimates need; None when they cannot be judged."""
    answers = pair(
        table, labels, predictions, probabilities=probabilities, classes=classes, threshold=threshold
    )
    metrics = tuple(measure(answers).values())
    if not metrics or answers.task is None:
        return None
    scores: tuple[float, ...] = ()
    chances: tuple[float, ...] = ()
    if answers.probabilities is not None and len(answers.classes) == 2 and answers.judged >= MIN_FIT_ROWS:
        scores, chances = calibration(answers.probabilities[:, 1], answers.truth_codes == 1)
    return ReferenceQuality(
        task=answers.task,
        rows=answers.judged,
        classes=answers.classes,
        threshold=threshold,
        metrics=metrics,
        scores=scores,
        chances=chances,
        model=_fit_losses(table, answers) if answers.judged >= MIN_FIT_ROWS else None,
    )


def calibration(
    scores: Floats, positive: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic regression of the label on the score, over at most `KNOTS` equally filled groups of rows."""
    order = np.argsort(scores, kind="stable")
    groups = [group for group in np.array_split(order, min(KNOTS, scores.size)) if group.size]
    means = [float(scores[group].mean()) for group in groups]
    pools: list[tuple[float, float, int]] = []
    for group in groups:
        # Pool adjacent violators: a share below the one before it is merged with it.
        hits, rows, members = float(positive[group].sum()), float(group.size), 1
        while pools and pools[-1][0] / pools[-1][1] >= hits / rows:
            before = pools.pop()
            hits, rows, members = hits + before[0], rows + before[1], members + before[2]
        pools.append((hits, rows, members))
    shares = [hits / rows for hits, rows, members in pools for _ in range(members)]
    # Equal scores in several groups would make two heights at one place.
    knots, index = np.unique(means, return_inverse=True)
    heights = np.bincount(index, weights=shares) / np.bincount(index)
    return tuple(knots.tolist()), tuple(heights.tolist())


def term_columns(
    table: Table, predictions: Codes | Floats, classes: Sequence[str], confidence: Floats | None
) -> Iterable[tuple[str, Column]]:
    """The columns a loss can depend on: features, then the prediction and how sure it was."""
    for name in table.names:
        yield name, read_column(table.column(name))
    nothing, no_texts = np.empty(0), np.empty(0, dtype=object)
    if classes:
        texts = np.array([classes[code] if code >= 0 else None for code in predictions], dtype=object)
        yield "(prediction)", Column("categorical", "string", nothing, texts)
    else:
        yield "(prediction)", Column("numeric", "double", np.asarray(predictions, dtype=np.float64), no_texts)
    if confidence is not None:
        yield "(confidence)", Column("numeric", "double", confidence, no_texts)


def _fit_losses(table: Table, answers: Answers) -> LossModel:
    # Evenly spread rows are enough, and bound the time for any reference.
    picked = np.unique(np.linspace(0, answers.judged - 1, min(FIT_ROWS, answers.judged)).astype(np.int64))
    losses = {name: values[picked] for name, values in _losses(answers).items()}
    targets = np.column_stack(list(losses.values()))
    rows = answers.used[picked]
    predicted: Codes | Floats = answers.predicted_codes if answers.classes else answers.predicted
    confidence = None if answers.probabilities is None else answers.probabilities.max(axis=1)
    found: list[tuple[float, Term, Codes]] = []
    own = {"(prediction)", "(confidence)"}
    for name, column in term_columns(table, predicted, answers.classes, confidence):
        part = _take(column, picked if name in own else rows)
        made = _term(name, part)
        if made is not None:
            term, codes = made
            found.append((_explained(codes, targets), term, codes))
    kept = sorted(found, key=lambda entry: -entry[0])[:MAX_TERMS]
    centred = targets - targets.mean(axis=0)
    weights, residuals = _ridge([codes for _, _, codes in kept], [len(t.counts) for _, t, _ in kept], centred)
    terms = tuple(
        Term(
            column=term.column,
            edges=term.edges,
            categories=term.categories,
            counts=term.counts,
            weights=tuple(tuple(row.tolist()) for row in part.T),
        )
        for (_, term, _), part in zip(kept, weights, strict=True)
    )
    return LossModel(
        losses=tuple(losses),
        intercepts=tuple(targets.mean(axis=0).tolist()),
        residuals=tuple(residuals.tolist()),
        terms=terms,
    )


def _losses(answers: Answers) -> dict[str, Floats]:
    if answers.task == "regression":
        errors = answers.predicted - answers.truth
        return {"mae": np.abs(errors), "rmse": errors**2}
    return {"accuracy": (answers.predicted_codes == answers.truth_codes).astype(np.float64)}


def _take(column: Column, rows: Codes) -> Column:
    if column.kind == "numeric":
        return Column(column.kind, column.dtype, column.numbers[rows], column.texts)
    if column.kind == "categorical":
        return Column(column.kind, column.dtype, column.numbers, column.texts[rows])
    return column


def _term(name: str, column: Column) -> tuple[Term, Codes] | None:
    """The bins of a column and the bin of every row; None where all rows would share one."""
    edges: Floats = np.empty(0)
    categories: tuple[str, ...] = ()
    if column.kind == "numeric":
        finite = column.numbers[np.isfinite(column.numbers)]
        if finite.size:
            cuts = np.quantile(finite, np.linspace(0, 1, NUMERIC_BINS + 1), method="higher")
            # The outer bins stay empty, so values beyond the reference get no weight instead of a guessed one.
            edges = np.unique(np.append(cuts[:-1], np.nextafter(cuts[-1], np.inf)))
    elif column.kind == "categorical":
        present = [value for value in column.texts if value is not None]
        values, counts = np.unique(np.array(present, dtype=str), return_counts=True)
        categories = tuple(str(values[index]) for index in np.argsort(-counts, kind="stable")[:CATEGORIES])
    if not edges.size and not categories:
        return None
    codes = _bins(column, edges, categories)
    size = edges.size + 2 if edges.size else len(categories) + 2
    counts_of = np.bincount(codes, minlength=size)
    if (counts_of > 0).sum() < 2:
        return None
    term = Term(
        column=name, edges=tuple(edges.tolist()), categories=categories, counts=tuple(counts_of.tolist())
    )
    return term, codes


def _bins(column: Column, edges: Floats, categories: Sequence[str]) -> Codes:
    if categories:
        index = {name: code for code, name in enumerate(categories)}
        other = len(categories)
        return np.array(
            [other + 1 if value is None else index.get(value, other) for value in column.texts],
            dtype=np.int64,
        )
    codes = np.searchsorted(edges, column.numbers, side="right")
    codes[np.isnan(column.numbers)] = edges.size + 1
    return np.asarray(codes, dtype=np.int64)


def _explained(codes: Codes, targets: Floats) -> float:
    """Share of the variance that the bins explain, of the loss they explain best."""
    counts = np.bincount(codes)
    best = 0.0
    for target in targets.T:
        means = np.bincount(codes, weights=target - target.mean()) / np.maximum(counts, 1)
        best = max(best, float((counts * means**2).sum()) / (float(target.var()) * target.size + 1e-300))
    return best


def _ridge(columns: list[Codes], sizes: list[int], targets: Floats) -> tuple[list[Floats], Floats]:
    """Weights of every bin for every target, per column of shape [bins, targets], and what is left over."""
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    width, rows = int(starts[-1]), targets.shape[0]
    if not width:
        return [], targets.std(axis=0)
    gram, right = np.eye(width) * RIDGE, np.zeros((width, targets.shape[1]))
    places = np.column_stack([codes + start for codes, start in zip(columns, starts[:-1], strict=True)])
    for begin in range(0, rows, _CHUNK):
        part = places[begin : begin + _CHUNK]
        hot = np.zeros((part.shape[0], width))
        np.put_along_axis(hot, part, 1.0, axis=1)
        gram += hot.T @ hot
        right += hot.T @ targets[begin : begin + _CHUNK]
    weights: Floats = np.linalg.solve(gram, right).astype(np.float64)
    left = targets - weights[places].sum(axis=1)
    return [weights[start:end] for start, end in itertools.pairwise(starts)], left.std(axis=0)
