"""Proof that a servable answers like its native model: reference answers and the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.report import (
    FP32,
    WORST,
    DatasetParity,
    ParityReport,
    Tolerance,
    WorstRow,
    plain,
)

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.native import NativeModel
    from mlflow_deploy.conversion.runners import Runner


@dataclass(frozen=True)
class Dataset:
    """Rows to compare on.

    Attributes:
        name: what they are, for the report.
        rows: rows that fit the signature.
        gating: a difference rejects the servable; otherwise it is only reported.
        single: send the rows one by one, not as a batch.
        truth: the true answer of each row, for the change of the metric.
    """

    name: str
    rows: pd.DataFrame
    gating: bool = True
    single: bool = False
    truth: Array | None = None


@dataclass(frozen=True)
class Reference:
    """A data set with the native model's answers; rows that the native model refuses are left out.

    Attributes:
        dataset: the rows that have answers.
        answers: native answers, [rows] or [rows, k].
        refused: how many rows the native model raised on.
    """

    dataset: Dataset
    answers: Array
    refused: int


# --- native answers ----------------------------------------------------------------------------------------


def refer(native: NativeModel, dataset: Dataset) -> Reference:
    """Ask the native model for a data set, leaving out the rows that it refuses."""
    rows = dataset.rows
    keep, answers = _answer(native, rows, list(range(len(rows))), dataset.single)
    truth = None if dataset.truth is None else dataset.truth[keep]
    kept = replace(dataset, rows=rows.iloc[keep].reset_index(drop=True), truth=truth)
    merged = np.concatenate(answers) if answers else np.empty(0)
    return Reference(dataset=kept, answers=merged, refused=len(rows) - len(keep))


def _answer(
    native: NativeModel, rows: pd.DataFrame, index: list[int], single: bool
) -> tuple[list[int], list[Array]]:
    if not index:
        return [], []
    if not single or len(index) == 1:
        try:
            answer = native.predict(rows.iloc[index].reset_index(drop=True))
        except Exception:  # noqa: BLE001 - any exception is the native model's way to refuse rows; they are counted
            if len(index) == 1:
                return [], []
        else:
            if len(answer) != len(index):
                return [], []
            return index, [answer]
    middle = (len(index) + 1) // 2
    parts = [_answer(native, rows, half, single) for half in (index[:middle], index[middle:])]
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


# --- comparison --------------------------------------------------------------------------------------------


def compare(
    runner: Runner,
    references: Sequence[Reference],
    *,
    format: str,
    variant: str,
    tolerance: Tolerance = FP32,
    probabilities: bool = False,
    notes: Sequence[str] = (),
) -> ParityReport:
    """Run a servable on the rows of `references` and compare its answers with the native ones.

    Args:
        probabilities: the answers are class probabilities, so the most probable class is compared too.
    """
    results: list[DatasetParity] = []
    worst: list[WorstRow] = []
    for reference in references:
        result, rows = _compare(runner, reference, tolerance, probabilities)
        results.append(result)
        worst += rows
    worst.sort(key=lambda row: -math.inf if row.abs_diff is None else -_size(row.abs_diff))
    compared = sum(item.rows for item in results if item.gating)
    passed = compared > 0 and all(item.passed or not item.gating for item in results)
    return ParityReport(
        format=format,
        variant=variant,
        tolerance=tolerance,
        passed=passed,
        datasets=tuple(results),
        worst=tuple(worst[:WORST]),
        notes=tuple(notes),
    )


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _compare(
    runner: Runner, reference: Reference, tolerance: Tolerance, probabilities: bool
) -> tuple[DatasetParity, list[WorstRow]]:
    dataset, native = reference.dataset, reference.answers
    rows = len(dataset.rows)
    if rows == 0:
        empty = DatasetParity(dataset.name, 0, reference.refused, None, None, 0.0, None, dataset.gating, True)
        return empty, []
    error = ""
    try:
        served = _run(runner, dataset)
        if served.shape != native.shape:
            error = f"it gives an answer of shape {served.shape} instead of {native.shape}"
    except Exception as failure:  # noqa: BLE001 - whatever the servable raises is its failure, and is reported
        error = f"it raises {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    if error:
        failed = DatasetParity(
            dataset.name, rows, reference.refused, None, None, 1.0, 0.0, dataset.gating, False, error
        )
        return failed, []
    labels = native.dtype.kind not in "fc"
    distance = None if labels else _distance(native, served)
    wrong = _by_row(native != served) if labels else _beyond(native, distance, tolerance, probabilities)
    agreement: Array | None = None
    if labels:
        agreement = ~wrong
    elif probabilities and native.ndim == 2:
        agreement = _same_class(native, served)
        wrong = wrong | ~agreement
    result = DatasetParity(
        name=dataset.name,
        rows=rows,
        refused=reference.refused,
        max_abs_diff=None if distance is None else float(distance.max(initial=0.0)),
        mean_abs_diff=None if distance is None else float(distance.mean()),
        beyond=float(wrong.mean()),
        label_agreement=None if agreement is None else float(agreement.mean()),
        gating=dataset.gating,
        passed=not wrong.any(),
        **_metric(dataset.truth, native, served),
    )
    return result, _worst(dataset, native, served, distance, wrong)


def _run(runner: Runner, dataset: Dataset) -> Array:
    if not dataset.single:
        return runner.run(dataset.rows)
    return np.concatenate([runner.run(dataset.rows.iloc[[row]]) for row in range(len(dataset.rows))])


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
    size = np.where(np.isfinite(native), np.abs(native), 0.0)
    return _by_row(distance > tolerance.atol * scale + tolerance.rtol * size)


def _same_class(native: Array, served: Array) -> Array:
    """Rows where the most probable class is the same, or where the native model has it tied.

    Of classes that share the highest probability up to rounding neither is the right one, and which comes
    first depends on the last bit.
    """
    best = np.nan_to_num(native.max(axis=1))
    chosen = np.take_along_axis(native, served.argmax(axis=1)[:, None], axis=1)[:, 0]
    tied = best - np.nan_to_num(chosen) <= 1e-6
    return np.asarray((native.argmax(axis=1) == served.argmax(axis=1)) | tied)


def _by_row(cells: Array) -> Array:
    return np.asarray(np.asarray(cells, dtype=bool).reshape(len(cells), -1).any(axis=1))


def _metric(truth: Array | None, native: Array, served: Array) -> dict[str, Any]:
    """The metric of both answers against the truth; empty without truth or for answers of another shape."""
    if truth is None or native.ndim != 1:
        return {}
    if native.dtype.kind not in "fc" or len(np.unique(truth)) <= 2:
        found = [float((answer == truth).mean()) for answer in (native, served)]
        return {"metric": "accuracy", "native_metric": found[0], "served_metric": found[1]}
    with np.errstate(over="ignore"):
        errors = [answer.astype(np.float64) - truth.astype(np.float64) for answer in (native, served)]
        found = [float(np.sqrt(np.mean(error**2))) for error in errors]
    return {"metric": "rmse", "native_metric": found[0], "served_metric": found[1]}


def _worst(
    dataset: Dataset, native: Array, served: Array, distance: Array | None, wrong: Array
) -> list[WorstRow]:
    size = wrong.astype(float) if distance is None else distance.reshape(len(distance), -1).max(axis=1)
    order = np.argsort(-size, kind="stable")[:WORST]
    return [
        WorstRow(
            dataset=dataset.name,
            row=int(row),
            values={str(name): plain(value) for name, value in dataset.rows.iloc[row].items()},
            native=plain(native[row]),
            served=plain(served[row]),
            abs_diff=None if distance is None else float(size[row]),
        )
        for row in order
        if size[row] > 0
    ]
