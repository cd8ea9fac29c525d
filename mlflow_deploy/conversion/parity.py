"""Proof that a servable answers like its native model: reference answers and the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.answers import Answer, as_answer, concatenate
from mlflow_deploy.conversion.differences import TIE, by_row, change_of_metric, compare_arrays, forgiving
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
from mlflow_deploy.conversion.rows import count, take, values

if TYPE_CHECKING:
    from mlflow_deploy.conversion.native import NativeModel
    from mlflow_deploy.conversion.rows import Rows
    from mlflow_deploy.conversion.runners import Runner


@dataclass(frozen=True)
class Dataset:
    """Rows to compare on.

    Attributes:
        name: what they are, for the report.
        rows: rows that fit the signature: a DataFrame, or an array for each tensor.
        gating: a difference rejects the servable; otherwise it is only reported.
        single: send the rows one by one, not as a batch.
        truth: the true answer of each row, for the change of the metric.
        strict: what the native model raises on, the servable must raise on too.
    """

    name: str
    rows: Rows
    gating: bool = True
    single: bool = False
    truth: Array | None = None
    strict: bool = False


@dataclass(frozen=True)
class Reference:
    """A data set with the native model's answers; rows that the native model refuses are left out.

    Attributes:
        dataset: the rows that have answers.
        answers: native answers, one for each row.
        refused: how many rows the native model raised on, or answered with NaN.
        tied: for answers with labels, a table of the classes that share the highest probability in each row:
            none of them is the right one. None where no probabilities are known.
        classes: what the columns of `tied` stand for.
        raised: of a strict data set, the rows that the native model raised on.
    """

    dataset: Dataset
    answers: Answer
    refused: int
    tied: Array | None = None
    classes: Array | None = None
    raised: Rows | None = None


# --- native answers ----------------------------------------------------------------------------------------


def refer(native: NativeModel, dataset: Dataset) -> Reference:
    """Ask the native model for a data set, leaving out the rows that it refuses.

    A NaN is no answer: what a network makes of a missing value. Such rows count as refused, so that the
    server refuses them too instead of computing something.
    """
    if native.rows_at_once == 1:
        dataset = replace(dataset, single=True)
    rows = dataset.rows
    keep, parts = _answer(native, rows, list(range(count(rows))), dataset.single)
    raised = take(rows, sorted(set(range(count(rows))).difference(keep))) if dataset.strict else None
    answers = concatenate(parts)
    usable = _answered(answers, len(keep))
    if not usable.all():
        keep = [index for index, good in zip(keep, usable, strict=True) if good]
        answers = answers.take(usable)
    truth = None if dataset.truth is None else dataset.truth[keep]
    kept = replace(dataset, rows=take(rows, keep), truth=truth)
    return Reference(dataset=kept, answers=answers, refused=count(rows) - len(keep), raised=raised)


def with_ties(reference: Reference, behind: Reference, classes: Array | None) -> Reference:
    """The reference with the ties that its labels were drawn from, where the probabilities tell."""
    if classes is None or behind.answers.form != "array" or len(behind.answers) != len(reference.answers):
        return reference
    chances = behind.answers.array
    if chances.ndim != 2 or chances.shape[1] != len(classes) or not len(chances):
        return reference
    return replace(reference, tied=chances.max(axis=1, keepdims=True) - chances <= TIE, classes=classes)


def _answered(answers: Answer, rows: int) -> Array:
    """For each row whether no number of its answer is NaN."""
    good = np.ones(rows, dtype=bool)
    for array in answers.arrays.values():
        if array.dtype.kind == "f" and rows:
            good &= ~by_row(np.isnan(array))
    return good


def _answer(
    native: NativeModel, rows: Rows, index: list[int], single: bool
) -> tuple[list[int], list[Answer]]:
    if not index:
        return [], []
    if not single or len(index) == 1:
        try:
            answer = native.predict(take(rows, index))
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
    classes: Array | None = None,
    notes: Sequence[str] = (),
) -> ParityReport:
    """Run a servable on the rows of `references` and compare its answers with the native ones.

    Args:
        probabilities: the answers are class probabilities, so the most probable class is compared too.
        classes: the labels that the columns of the probabilities stand for, for the metric.
    """
    results: list[DatasetParity] = []
    worst: list[WorstRow] = []
    for reference in references:
        result, rows = _compare(runner, reference, tolerance, probabilities, classes)
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
    runner: Runner, reference: Reference, tolerance: Tolerance, probabilities: bool, classes: Array | None
) -> tuple[DatasetParity, list[WorstRow]]:
    dataset, native = reference.dataset, reference.answers
    rows = count(dataset.rows)
    if bold := _answers_refused(runner, reference):
        failed = DatasetParity(
            dataset.name, rows, reference.refused, None, None, 1.0, 0.0, dataset.gating, False, bold
        )
        return failed, []
    if rows == 0:
        empty = DatasetParity(dataset.name, 0, reference.refused, None, None, 0.0, None, dataset.gating, True)
        return empty, []
    error = ""
    try:
        served = _run(runner, dataset)
        error = _mismatch(native, served)
    except Exception as failure:  # noqa: BLE001 - whatever the servable raises is its failure, and is reported
        error = f"it raises {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    if error:
        failed = DatasetParity(
            dataset.name, rows, reference.refused, None, None, 1.0, 0.0, dataset.gating, False, error
        )
        return failed, []
    parts = {
        name: compare_arrays(array, served.arrays[name], tolerance, probabilities)
        for name, array in native.arrays.items()
    }
    if reference.tied is not None and len(parts) == 1:
        (name,) = parts
        parts[name] = forgiving(parts[name], served.arrays[name], reference.tied, reference.classes)
    far = np.logical_or.reduce([part.far for part in parts.values()])
    other = np.logical_or.reduce(
        [~part.same for part in parts.values() if part.same is not None] or [far & False]
    )
    wrong = far | other
    distances = [part.distance for part in parts.values() if part.distance is not None]
    agreements = [float(part.same.mean()) for part in parts.values() if part.same is not None]
    scored = change_of_metric(dataset.truth, native, served, classes) if len(parts) == 1 else {}
    result = DatasetParity(
        name=dataset.name,
        rows=rows,
        refused=reference.refused,
        max_abs_diff=max(float(item.max(initial=0.0)) for item in distances) if distances else None,
        mean_abs_diff=max(float(item.mean()) for item in distances) if distances else None,
        beyond=float(wrong.mean()),
        label_agreement=min(agreements) if agreements else None,
        gating=dataset.gating,
        passed=bool(far.mean() <= tolerance.beyond and 1.0 - other.mean() >= tolerance.agreement),
        **scored,
    )
    return result, _worst(dataset, native, served, distances, wrong)


def _answers_refused(runner: Runner, reference: Reference) -> str:
    """What to say of a servable that answers rows which the native model raises on, or the empty string."""
    raised = reference.raised
    if raised is None:
        return ""
    answered = []
    for row in range(count(raised)):
        try:
            runner.run(take(raised, [row]))
        except Exception:  # noqa: BLE001, S112 - whatever it raises, it refuses the row as the native model does
            continue
        answered.append(row)
    return f"it answers {len(answered)} rows that the native model refuses" if answered else ""


def _mismatch(native: Answer, served: Answer) -> str:
    """Why two answers cannot be compared number by number, or the empty string."""
    if (native.form, list(native.arrays)) != (served.form, list(served.arrays)):
        names = [f"{answer.form} {[name for name in answer.arrays if name]}" for answer in (served, native)]
        return f"it gives an answer in form {names[0]} instead of {names[1]}"
    for name, array in native.arrays.items():
        shape = served.arrays[name].shape
        if shape != array.shape:
            return f"it gives an answer of shape {shape} instead of {array.shape}"
    return ""


def _run(runner: Runner, dataset: Dataset) -> Answer:
    if not dataset.single:
        return as_given(runner.run(dataset.rows))
    rows = range(count(dataset.rows))
    return concatenate([as_given(runner.run(take(dataset.rows, [row]))) for row in rows])


def are_probabilities(references: Sequence[Reference]) -> bool:
    """Whether all answers are shares of several classes: none negative, each row adding up to 1."""
    arrays = [item.answers.array for item in references if len(item.answers) and item.answers.form == "array"]
    return bool(arrays) and all(
        array.ndim == 2
        and array.shape[1] > 1
        and array.dtype.kind == "f"
        and bool((array >= 0).all())
        and np.allclose(array.sum(axis=1, dtype=np.float64), 1.0, atol=1e-3)
        for array in arrays
    )


def numbered_classes(references: Sequence[Reference]) -> Array | None:
    """The labels 0, 1, 2... when the answers have a column for each and the true answers are such numbers."""
    for item in references:
        truth, answers = item.dataset.truth, item.answers
        if truth is None or not len(answers) or answers.form != "array" or answers.array.ndim != 2:
            continue
        width = answers.array.shape[1]
        if width > 1 and truth.dtype.kind in "iu" and truth.min() >= 0 and truth.max() < width:
            return np.arange(width)
    return None


def as_given(answer: Answer | Array) -> Answer:
    """A runner's answer; a bare array is an `array` answer."""
    return answer if isinstance(answer, Answer) else as_answer(answer)


def _worst(
    dataset: Dataset, native: Answer, served: Answer, distances: Sequence[Array], wrong: Array
) -> list[WorstRow]:
    if distances:
        size = np.max([item.reshape(len(item), -1).max(axis=1) for item in distances], axis=0)
        size = np.where(wrong & (size == 0), np.finfo(float).tiny, size)
    else:
        size = wrong.astype(float)
    order = np.argsort(-size, kind="stable")[:WORST]
    return [
        WorstRow(
            dataset=dataset.name,
            row=int(row),
            values=values(dataset.rows, int(row)),
            native=_shown(native, int(row)),
            served=_shown(served, int(row)),
            abs_diff=float(size[row]) if distances else None,
        )
        for row in order
        if size[row] > 0
    ]


def _shown(answer: Answer, row: int) -> Any:
    if answer.form == "array":
        return plain(answer.array[row])
    return {name: plain(array[row]) for name, array in answer.arrays.items()}
