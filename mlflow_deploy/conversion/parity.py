"""Proof that a servable answers like its native model: the comparison, its tolerance and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.feeds import Array

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.native import NativeModel
    from mlflow_deploy.conversion.runners import Runner

WORST = 5
"""How many of the worst rows a report shows."""


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from the native one: `atol * scale + rtol * |native|`.

    `scale` is the median size of the native numbers of the data set, at most 1 for probabilities, so that the
    absolute part means the same for a house price and for a concentration. Labels have no tolerance: a wrong
    label in production is wrong, however close the decision was.

    Attributes:
        rtol: relative part.
        atol: absolute part, in units of `scale`.
    """

    rtol: float = 1e-4
    atol: float = 1e-5


FP32 = Tolerance()
"""For servables that compute in 32-bit floats, which carry 7 digits: a sum of many terms keeps about 5."""


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


@dataclass(frozen=True)
class DatasetParity:
    """The comparison on one data set.

    Attributes:
        name: the data set.
        rows: compared rows.
        refused: rows left out because the native model itself refuses them.
        max_abs_diff: largest difference of a number; None when the answer is labels.
        mean_abs_diff: mean difference over all numbers; None when the answer is labels.
        beyond: share of rows with a number beyond tolerance or a wrong label.
        label_agreement: share of rows with the same label, for probabilities the same most probable class;
            None for other numbers.
        gating: a difference here rejects the servable.
        passed: no row is beyond.
        error: what the servable raised on rows that the native model answers.
        metric: name of the metric against the true answers: accuracy, or rmse for numbers; empty without truth.
        native_metric: its value for the native answers.
        served_metric: its value for the servable's answers.
        behind: it compares the probabilities behind labels, on rows that are already counted.
    """

    name: str
    rows: int
    refused: int
    max_abs_diff: float | None
    mean_abs_diff: float | None
    beyond: float
    label_agreement: float | None
    gating: bool
    passed: bool
    error: str = ""
    metric: str = ""
    native_metric: float | None = None
    served_metric: float | None = None
    behind: bool = False


@dataclass(frozen=True)
class WorstRow:
    """A row with a large difference: its data set, position, values and both answers, all as JSON."""

    dataset: str
    row: int
    values: dict[str, Any]
    native: Any
    served: Any
    abs_diff: float | None


@dataclass(frozen=True)
class ParityReport:
    """Whether a servable answers like its native model, with the evidence.

    Attributes:
        format: form of the servable.
        variant: the candidate: "float32", "float64"...
        tolerance: the tolerance that was applied.
        passed: no gating data set has a difference.
        datasets: one comparison per data set.
        worst: up to five rows with the largest differences.
        notes: what a reader of the report has to know, such as validation rows that could not be read.
    """

    format: str
    variant: str
    tolerance: Tolerance
    passed: bool
    datasets: tuple[DatasetParity, ...]
    worst: tuple[WorstRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[DatasetParity]:
        """The gating data sets with a difference."""
        return [item for item in self.datasets if item.gating and not item.passed]

    @property
    def finding(self) -> str:
        """What was found, without the form's name."""
        if not self.passed:
            shown = [_failure(item) for item in self.failures]
            more = f", and on {len(shown) - 3} more data sets" if len(shown) > 3 else ""
            return "differs " + "; ".join(shown[:3]) + more
        rows = sum(item.rows for item in self.datasets if not item.behind)
        worst = max((item.max_abs_diff or 0.0 for item in self.datasets if item.gating), default=0.0)
        labels = [i.label_agreement for i in self.datasets if i.gating and i.label_agreement is not None]
        agreement = f", label agreement {min(labels):.2%}" if labels else ""
        return f"equal on {rows} rows: max difference {worst:.1e}{agreement}"

    @property
    def summary(self) -> str:
        """The report on one line."""
        return f"{self.format} ({self.variant}) {self.finding}"

    def joined(self, other: ParityReport, what: str) -> ParityReport:
        """This report with the data sets of another one, whose names get the addition `what`."""
        datasets = [replace(item, name=f"{item.name} ({what})", behind=True) for item in other.datasets]
        worst = [replace(item, dataset=f"{item.dataset} ({what})") for item in other.worst]
        return replace(
            self,
            passed=self.passed and other.passed,
            datasets=(*self.datasets, *datasets),
            worst=(*self.worst, *worst)[:WORST],
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: numbers that JSON cannot hold become text."""
        document: dict[str, Any] = _plain(asdict(self))
        return document | {"summary": self.summary}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ParityReport:
        """The report that `to_dict` wrote."""
        fields = {key: value for key, value in document.items() if key != "summary"}
        fields["tolerance"] = Tolerance(**fields["tolerance"])
        fields["datasets"] = tuple(DatasetParity(**_numbers(item)) for item in fields["datasets"])
        fields["worst"] = tuple(WorstRow(**_numbers(item)) for item in fields["worst"])
        fields["notes"] = tuple(fields["notes"])
        return cls(**fields)


def _failure(item: DatasetParity) -> str:
    if item.error:
        return f"on {item.name}: {item.error}"
    share = f"{item.beyond:.2%} of {item.rows} rows"
    if item.max_abs_diff is None:
        return f"on {item.name} {share} have another label"
    return f"on {item.name} {share} are beyond tolerance, max difference {item.max_abs_diff:.2g}"


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
        error = f"it raises {type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"
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
    same: Array = (native.argmax(axis=1) == served.argmax(axis=1)) | (best - np.nan_to_num(chosen) <= 1e-6)
    return same


def _by_row(cells: Array) -> Array:
    flags: Array = np.asarray(cells, dtype=bool).reshape(len(cells), -1).any(axis=1)
    return flags


def _metric(truth: Array | None, native: Array, served: Array) -> dict[str, Any]:
    """The metric of both answers against the truth; empty when there is none or the answers are no match for it."""
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
            values={str(name): _plain(value) for name, value in dataset.rows.iloc[row].items()},
            native=_plain(native[row]),
            served=_plain(served[row]),
            abs_diff=None if distance is None else float(size[row]),
        )
        for row in order
        if size[row] > 0
    ]


# --- JSON --------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value as JSON; NaN and infinities become the text that Python's float() reads."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_plain` for the fields that are numbers."""
    fields = dict(document)
    for key in ("max_abs_diff", "mean_abs_diff", "abs_diff", "native_metric", "served_metric"):
        if isinstance(fields.get(key), str):
            fields[key] = float(fields[key])
    return fields
