"""When the captured rows of a revision came, as far as a question needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.config_monitor import duration_seconds
from mlflow_deploy.monitoring.captured import TIME, CaptureStore
from mlflow_deploy.monitoring.windows import (
    Micros,
    Window,
    count_rows,
    micros,
    moment,
    row_count,
    rows_between,
)


class RowTimes:
    """Times of the captured rows of a revision in microseconds since the epoch; read anew whenever they are
    asked for, because all of them may be more than fits into memory."""

    def __init__(self, captures: CaptureStore, revision: int) -> None:
        self._captures, self._revision = captures, revision
        span = captures.span(revision)
        # Rows that come while the round goes on belong to the next one.
        self._span = None if span is None else (span[0], span[1] + timedelta(microseconds=1))
        self._counts: dict[int, dict[int, int]] = {}

    def __iter__(self) -> Iterator[Micros]:
        """The times in batches, in no order."""
        if self._span is None:
            return
        for batch in self._captures.batches(self._revision, *self._span, [TIME]):
            yield _micros_of(batch)

    def unjudged(self, window: str, judged: Mapping[datetime, datetime]) -> Iterator[Micros]:
        """Those that may be in a window without a result; files all of whose rows were judged are not read.

        Args:
            window: as `monitor.window`.
            judged: start -> end of the windows that have a result.
        """
        if self._span is None:
            return
        step, start = 0, self._span[0]
        if not row_count(window):
            step = round(duration_seconds(window) * 1e6)
        elif judged:
            start = max(start, *judged.values())

        def done(first: datetime, last: datetime) -> bool:
            numbers = range(micros(first) // step, micros(last) // step + 1) if step else ()
            return bool(numbers) and all(moment(number * step) in judged for number in numbers)

        for batch in self._captures.batches(self._revision, start, self._span[1], [TIME], unless=done):
            yield _micros_of(batch)

    def between(self, window: Window) -> int:
        """How many of the rows lie in a window."""
        found = self._captures.batches(self._revision, window.start, window.end, [TIME])
        return sum(batch.num_rows for batch in found)

    def counted(self, window: Window) -> Window:
        """The window with the rows that are in it now."""
        start, step = micros(window.start), micros(window.end) - micros(window.start)
        if start % step:
            return Window(window.start, window.end, rows_between(self, window.start, window.end))
        if step not in self._counts:
            self._counts[step] = count_rows(self, step)
        return Window(window.start, window.end, self._counts[step].get(start // step, 0))


def _micros_of(times: pa.RecordBatch) -> Micros:
    return np.asarray(pc.cast(times.column(0), pa.int64()).to_numpy(zero_copy_only=False))
