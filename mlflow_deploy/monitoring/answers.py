"""Bring predictions and labels into one comparable form: the task, the classes, the rows that can be judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.bundle import class_name
from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring.tables import Kind, Table, kind_of, values_table

Floats: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.int64]
Task: TypeAlias = Literal["classification", "regression"]

MAX_CLASSES = 20
"""Most different whole numbers that are taken for classes when nobody says what they are."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Predictions beside labels, only the rows in which both can be used; `n` such rows.

    Attributes:
        task: None when nothing can be judged; `reason` says why.
        rows: rows before unusable ones were left out.
        left_out: rows that were left out, by cause.
        notes: what a reader should know, such as differing types.
        truth: regression: true values, shape [n].
        predicted: regression: predicted values, shape [n].
        classes: classification: the classes in order; of two, the second is the positive one.
        truth_codes: classification: indices into `classes`, shape [n].
        predicted_codes: the same for the predictions.
        probabilities: shape [n, classes], or None when only classes were predicted.
        used: indices of the rows that are left, shape [n].
    """

    task: Task | None
    reason: str = ""
    rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    truth: Floats = field(default_factory=lambda: np.empty(0))
    predicted: Floats = field(default_factory=lambda: np.empty(0))
    classes: tuple[str, ...] = ()
    truth_codes: Codes = field(default_factory=lambda: np.empty(0, np.int64))
    predicted_codes: Codes = field(default_factory=lambda: np.empty(0, np.int64))
    probabilities: Floats | None = None
    used: Codes = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def judged(self) -> int:
        """Rows that are left."""
        return int(self.used.size)


@dataclass(frozen=True)
class Column:
    """One column of values: `numbers` with NaN where missing, or `texts` with None where missing."""

    kind: Kind
    dtype: str
    numbers: Floats
    texts: npt.NDArray[np.object_]

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Rows without a value."""
        if self.kind == "numeric":
            return np.isnan(self.numbers)
        return np.array([value is None for value in self.texts], dtype=bool)


def pair(
    table: Table,
    labels: Any,
    predictions: Any,
    *,
    kind: str = "auto",
    probabilities: Any = None,
    classes: Sequence[Any] | None = None,
    threshold: float = 0.5,
) -> Answers:
    """Predictions and labels side by side; what cannot be compared is a reason and no error.

    Args:
        table: the rows; needed for columns that are given by name.
        labels: name of a column, or one value per row.
        predictions: the same; or probabilities, of the positive class or of shape [rows, classes].
        probabilities: the same as probabilities in `predictions`, beside predicted classes.
        classes: the classes in the order of the columns of the probabilities.
        threshold: probability of the positive class from which on it is predicted.

    Raises:
        DataError: there are not as many labels or predictions as rows.
    """
    rows = table.rows
    truth = given_column(table, labels, "label")
    if isinstance(truth, str):
        return Answers(task=None, reason=truth, rows=rows)
    matrix = given_matrix(table, probabilities if probabilities is not None else predictions)
    answer: Column | str | None = None
    if matrix is None or probabilities is not None:
        answer = given_column(table, predictions, "prediction")
        if isinstance(answer, str) and matrix is None:
            return Answers(task=None, reason=answer, rows=rows)
    if isinstance(answer, str):
        answer = None
    single = (
        None
        if probabilities is None or matrix is not None
        else given_column(table, probabilities, "probability")
    )
    if isinstance(single, str) or (single is not None and single.kind not in ("numeric", "empty")):
        why = single if isinstance(single, str) else f"probabilities are {single.dtype} and no numbers"
        return Answers(task=None, reason=why, rows=rows)
    if not rows:
        return Answers(task=None, reason="the window is empty")
    for column, name in ((truth, "label"), (answer, "prediction")):
        if column is not None and column.kind in ("empty", "unsupported"):
            why = "every value is missing" if column.kind == "empty" else f"type {column.dtype} is not judged"
            return Answers(task=None, reason=f"{name}: {why}", rows=rows)
    if _task(kind, truth, answer, matrix is not None or single is not None) == "regression":
        return _regression(rows, truth, answer)
    if matrix is None and single is None and answer is not None and _is_probability(answer, truth, classes):
        single, answer = answer, None
    if answer is not None and (answer.numbers[np.isfinite(answer.numbers)] % 1.0 != 0.0).any():
        why = "predictions are fractions, and it is not known of which of two classes: give classes="
        return Answers(task=None, reason=why, rows=rows)
    score = matrix if matrix is not None else None if single is None else single.numbers
    return _classification(rows, truth, answer, score, classes, threshold)


def _task(kind: str, truth: Column, answer: Column | None, probable: bool) -> Task:
    if kind in ("classification", "regression"):
        return "regression" if kind == "regression" else "classification"
    if probable or truth.kind == "categorical" or "bool" in truth.dtype or answer is None:
        return "classification"
    if answer.kind == "categorical" or "bool" in answer.dtype:
        return "classification"
    if not _few_whole(truth.numbers):
        return "regression"
    binary = set(np.unique(truth.numbers[~np.isnan(truth.numbers)])) <= {0.0, 1.0}
    if _few_whole(answer.numbers) or (binary and _in_unit(answer.numbers)):
        return "classification"
    return "regression"


def _few_whole(values: Floats) -> bool:
    finite = values[np.isfinite(values)]
    return bool((finite == np.floor(finite)).all()) and np.unique(finite).size <= MAX_CLASSES


def _in_unit(values: Floats) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and (finite >= 0.0).all() and (finite <= 1.0).all())


def _is_probability(answer: Column, truth: Column, classes: Sequence[Any] | None) -> bool:
    """Numbers between 0 and 1 that are not all whole, for two classes."""
    if answer.kind != "numeric" or not _in_unit(answer.numbers):
        return False
    labelled = 2 if _zero_one(truth) else len(_values(truth))
    known = labelled if classes is None else len(classes)
    finite = answer.numbers[np.isfinite(answer.numbers)]
    return known == 2 and bool((finite != np.floor(finite)).any())


def _zero_one(truth: Column) -> bool:
    return truth.kind == "numeric" and _values(truth) <= {"0", "1"}


def _regression(rows: int, truth: Column, answer: Column | None) -> Answers:
    if answer is None or truth.kind != "numeric" or answer.kind != "numeric":
        types = f"labels are {truth.dtype}, predictions {'missing' if answer is None else answer.dtype}"
        return Answers(task=None, reason=f"a regression needs numbers: {types}", rows=rows)
    causes = {
        "missing label": np.isnan(truth.numbers),
        "missing prediction": np.isnan(answer.numbers),
        "infinite label": np.isinf(truth.numbers),
        "infinite prediction": np.isinf(answer.numbers),
    }
    used, left_out = _keep(rows, causes)
    return Answers(
        task="regression",
        rows=rows,
        left_out=left_out,
        truth=truth.numbers[used],
        predicted=answer.numbers[used],
        used=used,
    )


def _classification(
    rows: int,
    truth: Column,
    answer: Column | None,
    score: Floats | None,
    classes: Sequence[Any] | None,
    threshold: float,
) -> Answers:
    true_values, known = _values(truth), tuple(class_name(value) for value in classes or ())
    answered = set() if answer is None else _values(answer)
    if not known:
        known = _order(true_values | answered)
        if score is not None and set(known) <= {"0", "1"}:
            known = ("0", "1")
    if score is not None:
        columns = 2 if score.ndim == 1 else score.shape[1]
        if len(known) != columns:
            why = f"{columns} classes have a probability, but {len(known)} are known: {_few(known)}"
            return Answers(task=None, reason=why + "; give classes=", rows=rows)
    strangers = true_values - set(known)
    causes: dict[str, npt.NDArray[np.bool_]] = {"missing label": truth.missing}
    truth_codes = class_codes(truth, known)
    causes["unknown class in the label"] = (truth_codes < 0) & ~truth.missing
    probabilities = None
    if score is not None:
        probabilities = np.column_stack((1.0 - score, score)) if score.ndim == 1 else score
        causes["missing probability"] = np.asarray(np.isnan(probabilities).any(axis=1))
        causes["no probability in [0, 1]"] = _improbable(probabilities)
    if answer is None:
        assert probabilities is not None
        predicted = _decide(probabilities, threshold)
    else:
        predicted = class_codes(answer, known)
        causes["missing prediction"] = answer.missing
        causes["unknown class in the prediction"] = (predicted < 0) & ~answer.missing
        if answered and not true_values & answered and len(true_values) > 1:
            types = f"labels are {truth.dtype} ({_few(true_values)}), predictions {answer.dtype}"
            why = f"labels and predictions have no class in common: {types} ({_few(answered)})"
            return Answers(task=None, reason=why, rows=rows)
    used, left_out = _keep(rows, causes)
    notes = [f"labels have classes that are not known: {_few(strangers)}"] if strangers else []
    if answer is not None and truth.kind != answer.kind:
        notes.append(f"labels are {truth.dtype} and predictions {answer.dtype}: compared as text")
    return Answers(
        task="classification",
        rows=rows,
        left_out=left_out,
        notes=tuple(notes),
        classes=known,
        truth_codes=truth_codes[used],
        predicted_codes=predicted[used],
        probabilities=None if probabilities is None else probabilities[used],
        used=used,
    )


def _decide(probabilities: Floats, threshold: float) -> Codes:
    if probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1), dtype=np.int64)


def _improbable(probabilities: Floats) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        outside = ((probabilities < 0.0) | (probabilities > 1.0)).any(axis=1)
        wrong_sum = np.abs(probabilities.sum(axis=1) - 1.0) > 0.01
    return np.asarray((outside | wrong_sum) & ~np.isnan(probabilities).any(axis=1))


def _keep(rows: int, causes: Mapping[str, npt.NDArray[np.bool_]]) -> tuple[Codes, dict[str, int]]:
    """Rows without any cause, and how many each cause took; a row counts under its first cause only."""
    kept = np.ones(rows, dtype=bool)
    left_out = {}
    for cause, flags in causes.items():
        hit = kept & flags
        if hit.any():
            left_out[cause] = int(hit.sum())
        kept &= ~flags
    return np.flatnonzero(kept), left_out


def read_column(parts: Iterable[pa.Array]) -> Column:
    """The batches of one column as numbers or as texts; of both together, as texts."""
    arrays = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in parts]
    kinds = {kind_of(array.type) for array in arrays} - {"empty"}
    dtype = " or ".join(sorted({str(a.type) for a in arrays if kind_of(a.type) != "empty"})) or "null"
    nothing = np.empty(0), np.empty(0, dtype=object)
    if "unsupported" in kinds or not kinds:
        return Column("unsupported" if kinds else "empty", dtype, *nothing)
    if kinds == {"numeric"}:
        floats = [array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for array in arrays]
        return Column("numeric", dtype, np.concatenate(floats).astype(np.float64), nothing[1])
    return Column("categorical", dtype, nothing[0], np.concatenate([_names(array) for array in arrays]))


def _names(array: pa.Array) -> npt.NDArray[np.object_]:
    """Values as texts; each different value is turned into one once only."""
    if kind_of(array.type) == "empty":
        return np.full(len(array), None, dtype=object)
    coded = array.dictionary_encode()
    names = np.array([class_name(value) for value in coded.dictionary.to_pylist()] + [None], dtype=object)
    codes = pc.fill_null(coded.indices, len(names) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(names[codes], dtype=object)


def given_column(table: Table, given: Any, name: str) -> Column | str:
    """The values, or why there are none."""
    if given is None:
        return f"there are no {name}s"
    if isinstance(given, str):
        if given not in table.names:
            return f"there is no column {given!r}"
        column = read_column(table.column(given))
    else:
        column = read_column(values_table(name, given, table.rows).column(name))
    empty = column.kind in ("numeric", "categorical") and bool(column.missing.all())
    return Column("empty", column.dtype, column.numbers, column.texts) if empty else column


def given_matrix(table: Table, given: Any) -> Floats | None:
    """Probabilities of shape [rows, classes], or None when the values are one-dimensional."""
    if isinstance(given, str) or given is None or len(getattr(given, "shape", ())) != 2:
        return None
    values = np.asarray(given, dtype=np.float64)
    if values.shape[0] != table.rows:
        raise DataError(f"There are {values.shape[0]} rows of probabilities for {table.rows} rows")
    return values


def _values(column: Column) -> set[str]:
    if column.kind == "numeric":
        return {class_name(value) for value in np.unique(column.numbers[~np.isnan(column.numbers)]).tolist()}
    return {value for value in column.texts if value is not None}


def class_codes(column: Column, classes: Sequence[str]) -> Codes:
    """Index of each value in `classes`, -1 for others and missing ones."""
    index = {name: code for code, name in enumerate(classes)}
    if column.kind == "numeric":
        values, inverse = np.unique(column.numbers, return_inverse=True)
        codes = np.array([index.get(class_name(value), -1) for value in values.tolist()], dtype=np.int64)
        return np.asarray(codes[inverse.reshape(-1)], dtype=np.int64)
    return np.array([-1 if value is None else index.get(value, -1) for value in column.texts], dtype=np.int64)


def _order(values: Iterable[str]) -> tuple[str, ...]:
    """Classes in rising order: as numbers when all are."""
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return tuple(sorted(values))


def _few(values: Iterable[str]) -> str:
    shown = _order(values)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
