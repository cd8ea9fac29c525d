"""Which windows of a revision are final: by time, aligned to multiples of their length in UTC, or by rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from mlflow_deploy.config_monitor import duration_seconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_EMPTY = 1000
"""Most windows without any row that are judged after a downtime; earlier ones say nothing and are left out."""

Micros = npt.NDArray[np.int64]
"""Times of rows in microseconds since the epoch."""


@dataclass(frozen=True, order=True)
class Window:
    """Rows with start <= time < end; both in UTC.

    Attributes:
        rows: captured rows in it.
    """

    start: datetime
    end: datetime
    rows: int = 0


def row_count(window: str) -> int:
    """Rows of a window that is given by their number, 0 for one that is given by time."""
    return int(window.removesuffix("rows")) if window.endswith("rows") else 0


def final_windows(
    window: str,
    times: Iterable[Micros],
    *,
    since: datetime,
    until: datetime,
    active: bool,
    judged: Mapping[datetime, datetime],
) -> list[Window]:
    """The windows that can be judged and were not, the oldest first.

    Args:
        window: as `monitor.window`.
        times: of the captured rows, in any order.
        since: when the revision was made; from then on windows without rows count too.
        until: windows that end later are not final.
        active: the revision runs; otherwise only windows with rows count.
        judged: start -> end of the windows that have a result.
    """
    if count := row_count(window):
        return _by_rows(count, times, until, judged)
    step = round(duration_seconds(window) * 1e6)
    rows = count_rows(times, step)
    last = micros(until) // step
    wanted = {index for index in rows if index < last}
    if active:
        wanted |= set(range(max(micros(since) // step, last - MAX_EMPTY), last))
    found_windows = (
        Window(moment(index * step), moment((index + 1) * step), rows.get(index, 0))
        for index in sorted(wanted)
    )
    return [each for each in found_windows if each.start not in judged]


def count_rows(times: Iterable[Micros], step: int) -> dict[int, int]:
    """Rows in each window of `step` microseconds, by the window's number since the epoch."""
    rows: dict[int, int] = {}
    for part in times:
        for index, found in zip(*np.unique(part // step, return_counts=True), strict=True):
            rows[int(index)] = rows.get(int(index), 0) + int(found)
    return rows


def rows_between(times: Iterable[Micros], start: datetime, end: datetime) -> int:
    """How many of the rows lie in a window."""
    first, last = micros(start), micros(end)
    return sum(int(((part >= first) & (part < last)).sum()) for part in times)


def micros(value: datetime) -> int:
    """Microseconds since the epoch."""
    return (value - EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The time of microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=value)


def _by_rows(
    count: int, times: Iterable[Micros], until: datetime, judged: Mapping[datetime, datetime]
) -> list[Window]:
    """Each window begins where the one before ended, so that no row is in two."""
    begin = micros(max(judged.values())) if judged else None
    first = np.iinfo(np.int64).min if begin is None else begin
    parts = [part[(part >= first) & (part < micros(until))] for part in times]
    left = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    windows = []
    while left.size >= count:
        start = int(left[0]) if begin is None else begin
        # Rows of one microsecond stay together.
        begin = int(left[count - 1]) + 1
        inside = int(np.searchsorted(left, begin))
        windows.append(Window(moment(start), moment(begin), inside))
        left = left[inside:]
    return windows
