"""Drift per value of one column, each segment compared with the same segment of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring.drift import MIN_ROWS, detect_drift
from mlflow_deploy.monitoring.profile import ReferenceProfile, build_profile
from mlflow_deploy.monitoring.report import DriftReport
from mlflow_deploy.monitoring.tables import Data, Table, kind_of, open_table

MAX_SEGMENTS = 20


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """Drift of each segment.

    Attributes:
        drifted: a segment drifted; the chance of that without drift is at most the rate asked for.
        reason: the whole verdict in one sentence.
        segments: by value of the column.
        vanished: segments without any row in the window.
        unknown_rows: rows of the window that belong to no segment of the reference.
    """

    drifted: bool
    reason: str
    segments: Mapping[str, DriftReport]
    vanished: tuple[str, ...] = ()
    unknown_rows: int = 0


def build_segment_profiles(
    data: Data, column: str, *, limit: int = MAX_SEGMENTS
) -> dict[str, ReferenceProfile]:
    """A reference profile for each of the most frequent values of a column.

    Args:
        data: as for `build_profile`.
        column: text, whole numbers or booleans; its values as text name the segments.
        limit: segments that are kept at most.

    Raises:
        DataError: the column is not there or has no values that could name segments.
    """
    table = open_table(data)
    values = _values(table, column)
    counted = pc.value_counts(values.drop_null()).to_pylist()
    counted.sort(key=lambda entry: (-entry["counts"], entry["values"]))
    return {
        entry["values"]: build_profile(_Segment(table, column, _is(values, entry["values"])))
        for entry in counted[:limit]
    }


def detect_segment_drift(
    profiles: Mapping[str, ReferenceProfile],
    data: Data,
    column: str,
    *,
    false_alarm_rate: float = 0.01,
    min_rows: int = MIN_ROWS,
) -> SegmentReport:
    """Compare each segment of a window with its own reference, by one method whatever its size.

    The false-alarm rate is divided by the number of segments, so that it holds for all of them together.

    Raises:
        DataError: the window cannot be read, or lacks the column.
    """
    table = open_table(data)
    values = _values(table, column)
    known = {name: _is(values, name) for name in profiles}
    reports = {
        name: detect_drift(
            profiles[name],
            _Segment(table, column, rows),
            false_alarm_rate=false_alarm_rate / len(profiles),
            min_rows=min_rows,
        )
        for name, rows in known.items()
    }
    moved = [name for name, report in reports.items() if report.drifted]
    judged = sum(report.enough_data for report in reports.values())
    reason = f"{len(moved)} of {judged} segments drifted" if judged else "no segment has enough data"
    return SegmentReport(
        drifted=bool(moved),
        reason=f"{reason}: {', '.join(moved)}" if moved else reason,
        segments=reports,
        vanished=tuple(name for name, rows in known.items() if not rows.any()),
        unknown_rows=table.rows - sum(int(rows.sum()) for rows in known.values()),
    )


class _Segment:
    """The rows of a table with one value of a column, without that column."""

    def __init__(self, table: Table, column: str, mask: npt.NDArray[np.bool_]) -> None:
        self._table, self._mask = table, mask
        self.names = tuple(name for name in table.names if name != column)
        self.rows = int(mask.sum())

    def column(self, name: str) -> Iterator[pa.Array]:
        at = 0
        for array in self._table.column(name):
            yield array.filter(pa.array(self._mask[at : at + len(array)]))
            at += len(array)


def _values(table: Table, column: str) -> pa.ChunkedArray:
    """The segment of each row as text."""
    if column not in table.names:
        raise DataError(
            f"There are no segments: the rows have no column {column!r}",
            hint=f"Have: {', '.join(table.names)}",
        )
    parts = []
    for part in table.column(column):
        plain = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        if kind_of(plain.type) == "unsupported" or pa.types.is_floating(plain.type):
            raise DataError(
                f"Column {column!r} cannot name segments", why=f"its values are {plain.type}",
                hint="Take a column of text, whole numbers or booleans",
            )  # fmt: skip
        parts.append(pc.cast(plain, pa.string()))
    return pa.chunked_array(parts, pa.string())


def _is(values: pa.ChunkedArray, name: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(values, name), False).to_numpy(), dtype=np.bool_)
