"""Join labels that come later with captured predictions; every label row counts under exactly one heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import ConfigError, DataError
from mlflow_deploy.monitoring.tables import kind_of

Codes: TypeAlias = npt.NDArray[np.int64]
Conflicts: TypeAlias = Literal["leave out", "latest"]

EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What became of every label row: labels = matched + duplicates + conflicting + superseded + unknown +
    no_key + no_value.

    Attributes:
        predictions: prediction rows that can have a label: each key once.
        repeated_predictions: rows whose key an earlier row has, such as a request that was sent again; they
            get no label.
        no_prediction_key: prediction rows without a key.
        labels: label rows.
        matched: label rows that were used, each for one prediction.
        coverage: matched / predictions; None without predictions.
        late: those among the matched that came more than `late_after` after their prediction; None when the
            times or the limit are not known. They are used.
        before_prediction: matched labels whose time is before that of the prediction: a clock went back.
        duplicates: rows that repeat the value of another row with the same key.
        conflicting: rows of keys that have different values, which are not used.
        superseded: rows that a later value replaced (`conflicts="latest"`).
        unknown: rows whose key no prediction has.
        no_key: rows without a key.
        no_value: rows without a label.
        conflicts: some keys with different values.
        notes: what a reader should know, such as differing types of the keys.
    """

    predictions: int
    repeated_predictions: int
    no_prediction_key: int
    labels: int
    matched: int
    coverage: float | None
    late: int | None
    before_prediction: int | None
    duplicates: int
    conflicting: int
    superseded: int
    unknown: int
    no_key: int
    no_value: int
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Predictions with their labels.

    Attributes:
        rows: the prediction rows that have a label, in their order, with the label as a further column.
        report: what became of all label rows.
    """

    rows: pa.Table
    report: LabelReport


def join_labels(
    predictions: pa.Table,
    labels: pa.Table,
    *,
    key: str | Sequence[str] = "request_id",
    label: str = "label",
    time: str = "time",
    late_after: timedelta | None = None,
    conflicts: Conflicts = "leave out",
) -> LabelledRows:
    """Give each prediction its label. The answer does not depend on the order in which the labels came.

    Args:
        predictions: captured rows with the key columns.
        labels: rows with the same key columns and the label.
        key: one column or several that together name a prediction, such as `("request_id", "row")`. Numbers and
            texts are compared as text.
        label: column of the label; must not be a column of the predictions.
        time: column of a timestamp in either table, where there is one; without time zone it is UTC.
        late_after: labels older than that after their prediction count as late.
        conflicts: what to do with different values for one key: use none, or the one with the latest time.
            Where the latest are equally late and differ, none is used.

    Raises:
        DataError: a table lacks a key or the label column.
        ConfigError: the label column is a column of the predictions, or the latest is asked for without times.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    _check(predictions, labels, keys, label)
    label_times = _times(labels, time)
    if conflicts == "latest" and label_times is None:
        raise ConfigError(
            "The latest label cannot be told", why=f"the labels have no timestamps in a column {time!r}",
            hint="Add the column, or leave conflicting labels out",
        )  # fmt: skip
    codes, notes = _key_codes(predictions, labels, keys)
    of_predictions, of_labels = codes[: predictions.num_rows], codes[predictions.num_rows :]
    value_codes = _value_codes(labels.column(label))
    firsts = _first_rows(of_predictions)
    no_key, no_value = of_labels < 0, (value_codes < 0) & (of_labels >= 0)
    row_of = np.full(int(codes.max(initial=-1)) + 1, -1, dtype=np.int64)
    row_of[of_predictions[firsts]] = firsts
    usable = np.flatnonzero(~no_key & ~no_value)
    known = usable[row_of[of_labels[usable]] >= 0]
    chosen, conflicting, superseded = _choose(
        known, of_labels, value_codes, label_times, latest=conflicts == "latest"
    )
    order = np.argsort(row_of[of_labels[chosen]], kind="stable")
    chosen = chosen[order]
    rows = row_of[of_labels[chosen]]
    late, before = _lateness(_times(predictions, time), label_times, rows, chosen, late_after)
    joined = predictions.take(pa.array(rows)).append_column(
        label, labels.column(label).take(pa.array(chosen))
    )
    examples = np.unique(of_labels[conflicting], return_index=True)[1][:EXAMPLES]
    return LabelledRows(
        rows=joined,
        report=LabelReport(
            predictions=int(firsts.size),
            repeated_predictions=int((of_predictions >= 0).sum() - firsts.size),
            no_prediction_key=int((of_predictions < 0).sum()),
            labels=labels.num_rows,
            matched=int(chosen.size),
            coverage=chosen.size / firsts.size if firsts.size else None,
            late=late,
            before_prediction=before,
            duplicates=int(known.size - chosen.size - conflicting.size - superseded),
            conflicting=int(conflicting.size),
            superseded=superseded,
            unknown=int(usable.size - known.size),
            no_key=int(no_key.sum()),
            no_value=int(no_value.sum()),
            conflicts=tuple(_name(labels, keys, int(conflicting[index])) for index in examples),
            notes=notes,
        ),
    )


def _check(predictions: pa.Table, labels: pa.Table, keys: tuple[str, ...], label: str) -> None:
    for table, name, needed in ((predictions, "predictions", keys), (labels, "labels", (*keys, label))):
        lacking = [column for column in needed if column not in table.column_names]
        if lacking:
            raise DataError(
                f"The {name} have no column {', '.join(map(repr, lacking))}",
                why=f"they have {', '.join(table.column_names)}",
                hint="Name the key and label columns",
            )
    if label in predictions.column_names:
        raise ConfigError(
            f"The predictions have a column {label!r} already",
            hint="Rename the label column, so that neither overwrites the other",
        )


def _key_codes(
    predictions: pa.Table, labels: pa.Table, keys: tuple[str, ...]
) -> tuple[Codes, tuple[str, ...]]:
    """One number per different key over both tables, predictions first; -1 without a key."""
    codes = np.zeros(predictions.num_rows + labels.num_rows, dtype=np.int64)
    missing = np.zeros(codes.size, dtype=bool)
    notes = []
    for name in keys:
        left, right = predictions.column(name), labels.column(name)
        if left.type != right.type and kind_of(left.type) != kind_of(right.type):
            notes.append(f"{name} is {left.type} in the predictions and {right.type} in the labels")
        part = _encode(
            pa.chunked_array([*_key_texts(left).chunks, *_key_texts(right).chunks], pa.large_string())
        )
        missing |= part < 0
        # Numbered anew after each column, so that the product cannot overflow.
        _, codes = np.unique(codes * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
        codes = codes.reshape(-1).astype(np.int64)
    codes[missing] = -1
    return codes, tuple(notes)


def _key_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as text; 7 and 7.0, which a missing value makes of it in pandas, are the same key."""
    if pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        whole = pc.all(pc.equal(values, pc.floor(values))).as_py()
        if whole is not False and (pc.max(pc.abs(values)).as_py() or 0.0) < 2**53:
            values = pc.cast(values, pa.int64())
    return pc.cast(values, pa.large_string())


def _value_codes(values: pa.ChunkedArray) -> Codes:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return _encode(values)


def _encode(values: pa.ChunkedArray) -> Codes:
    """One number per different value, -1 for missing ones."""
    combined = values.combine_chunks()
    array = pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
    if pa.types.is_null(array.type):
        return np.full(len(array), -1, dtype=np.int64)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return np.asarray(pc.fill_null(array.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False))


def _first_rows(codes: Codes) -> Codes:
    """First row of every key, in the order of the rows."""
    _, rows = np.unique(codes, return_index=True)
    return np.sort(rows[codes[rows] >= 0]).astype(np.int64)


def _choose(
    rows: Codes, keys: Codes, values: Codes, times: Codes | None, *, latest: bool
) -> tuple[Codes, Codes, int]:
    """One row for each key whose value is clear, the rows of keys where it is not, and how many rows later
    values replaced."""
    superseded = 0
    if latest and times is not None and rows.size:
        last = np.full(int(keys[rows].max()) + 1, np.iinfo(np.int64).min)
        np.maximum.at(last, keys[rows], times[rows])
        newest = times[rows] == last[keys[rows]]
        lowest, highest = np.full(last.size, np.iinfo(np.int64).max), np.full(last.size, -1, dtype=np.int64)
        np.minimum.at(lowest, keys[rows[newest]], values[rows[newest]])
        np.maximum.at(highest, keys[rows[newest]], values[rows[newest]])
        same = (values[rows] == lowest[keys[rows]]) & (values[rows] == highest[keys[rows]])
        old = ~newest & ~same
        superseded, rows = int(old.sum()), rows[~old]
    if not rows.size:
        return rows, rows, superseded
    # By time too, so that the earliest of equal labels is used and only its lateness counts.
    moment = np.zeros(rows.size, dtype=np.int64) if times is None else times[rows]
    rows = rows[np.lexsort((moment, keys[rows]))]
    starts = np.flatnonzero(np.concatenate(([True], np.diff(keys[rows]) != 0)))
    differ = np.minimum.reduceat(values[rows], starts) != np.maximum.reduceat(values[rows], starts)
    sizes = np.diff(np.append(starts, rows.size))
    return rows[starts[~differ]], rows[np.repeat(differ, sizes)], superseded


def _times(table: pa.Table, name: str) -> Codes | None:
    """Timestamps in microseconds, missing ones as the smallest number; None without such a column."""
    if name not in table.column_names or not pa.types.is_timestamp(table.column(name).type):
        return None
    micro = pc.cast(table.column(name), pa.timestamp("us", tz=table.column(name).type.tz), safe=False)
    numbers = pc.fill_null(pc.cast(micro, pa.int64()), np.iinfo(np.int64).min)
    return np.asarray(numbers.to_numpy(), dtype=np.int64)


def _lateness(
    predicted: Codes | None, labelled: Codes | None, rows: Codes, chosen: Codes, after: timedelta | None
) -> tuple[int | None, int | None]:
    if predicted is None or labelled is None:
        return None, None
    began, came = predicted[rows], labelled[chosen]
    timed = (began > np.iinfo(np.int64).min) & (came > np.iinfo(np.int64).min)
    delay = came[timed] - began[timed]
    late = None if after is None else int((delay > after // timedelta(microseconds=1)).sum())
    return late, int((delay < 0).sum())


def _name(table: pa.Table, keys: tuple[str, ...], row: int) -> str:
    return ", ".join(str(table.column(name)[row].as_py()) for name in keys)
