"""How two arrays of answers differ: distances and tolerance, labels and ties, and the metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.report import Tolerance

TIE = 1e-6
"""Probabilities this close to each other are tied: which one is the highest depends on the last bit."""


@dataclass(frozen=True)
class Difference:
    """How one array differs: rows beyond tolerance, distances of numbers, rows of the same label."""

    far: Array
    distance: Array | None
    same: Array | None


def compare_arrays(native: Array, served: Array, tolerance: Tolerance, probabilities: bool) -> Difference:
    """How an array of answers [rows, ...] differs from the native one of the same shape."""
    if native.dtype.kind not in "fc":
        same = ~by_row(native != served)
        return Difference(far=np.zeros(len(native), dtype=bool), distance=None, same=same)
    distance = _distance(native, served)
    far = _beyond(native, distance, tolerance, probabilities)
    classes = _same_class(native, served) if probabilities and native.ndim == 2 else None
    return Difference(far=far, distance=distance, same=classes)


def forgiving(part: Difference, served: Array, tied: Array | None, classes: Array | None) -> Difference:
    """The difference without labels that were tied with the native one.

    Args:
        tied: [rows, classes], which classes share the highest probability.
        classes: the labels of its columns.
    """
    if part.same is None or tied is None or classes is None or served.ndim != 1:
        return part
    chosen = served[:, None] == classes[None, :]
    return replace(part, same=part.same | (chosen & tied).any(axis=1))


def _distance(native: Array, served: Array) -> Array:
    """Absolute differences; 0 where both are NaN or the same infinity, infinite where only one is."""
    native, served = native.astype(np.float64), served.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(native - served)
    same = (native == served) | (np.isnan(native) & np.isnan(served))
    filled: Array = np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))
    return filled


def _beyond(native: Array, distance: Array | None, tolerance: Tolerance, probabilities: bool) -> Array:
    assert distance is not None
    finite = np.abs(native[np.isfinite(native)].astype(np.float64))
    scale = 1.0 if probabilities or finite.size == 0 else float(np.median(finite)) or 1.0
    size = np.where(np.isfinite(native), np.abs(native), 0.0).astype(np.float64)
    # Numbers of one row come from the same sums: next to a large one a small one is what cancelling left over.
    largest = size.reshape(len(size), -1).max(axis=1, initial=0.0).reshape(-1, *[1] * (size.ndim - 1))
    scales = scale if probabilities else np.maximum(scale, largest)
    return by_row(distance > tolerance.atol * scales + tolerance.rtol * size)


def _same_class(native: Array, served: Array) -> Array:
    """Rows where the most probable class is the same, or where the native model has it tied.

    Of classes that share the highest probability up to rounding neither is the right one, and which comes
    first depends on the last bit.
    """
    best = np.nan_to_num(native.max(axis=1))
    chosen = np.take_along_axis(native, served.argmax(axis=1)[:, None], axis=1)[:, 0]
    tied = best - np.nan_to_num(chosen) <= TIE
    return np.asarray((native.argmax(axis=1) == served.argmax(axis=1)) | tied)


def by_row(cells: Array) -> Array:
    """For each row whether any of its cells is true."""
    return np.asarray(np.asarray(cells, dtype=bool).reshape(len(cells), -1).any(axis=1))


def change_of_metric(
    truth: Array | None, first: Answer, second: Answer, classes: Array | None
) -> dict[str, Any]:
    """The metric of both answers against the truth; empty without truth or for answers of another shape."""
    (native,), (served,) = first.arrays.values(), second.arrays.values()
    if truth is None:
        return {}
    if classes is not None and native.ndim == 2 and native.shape[1] == len(classes):
        native, served = classes[native.argmax(axis=1)], classes[served.argmax(axis=1)]
    if native.ndim != 1:
        return {}
    if native.dtype.kind not in "fc" or len(np.unique(truth)) <= 2:
        found = [float((answer == truth).mean()) for answer in (native, served)]
        return {"metric": "accuracy", "native_metric": found[0], "served_metric": found[1]}
    with np.errstate(over="ignore"):
        errors = [answer.astype(np.float64) - truth.astype(np.float64) for answer in (native, served)]
        found = [float(np.sqrt(np.mean(error**2))) for error in errors]
    return {"metric": "rmse", "native_metric": found[0], "served_metric": found[1]}
