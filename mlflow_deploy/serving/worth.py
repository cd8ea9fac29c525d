"""Learns from the calls themselves whether it pays to stack them, for the model at hand on this machine."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from time import process_time

_BLOCKS = 4  # of a trial: by turns stacked and alone
_SETTLE = (8, 32)  # the first calls of a block, alone or stacked, which still meet those of the block before
_BLOCK_SECONDS = 0.03  # processor time that a block takes,
_LEAST, _MOST = 24, 1024  # with so many calls at least, or at most
_PAUSE = 8192  # calls between two trials at first; each trial with the same outcome doubles it
_LONGEST_PAUSE = 1 << 18
_ENOUGH = 0.95  # a smaller gain is not worth the wait for others


class Worth:
    """Runs a trial now and then: some calls alone, some stacked; what cost less holds until the next one.

    A call costs processor time of this whole process, in which the queue and changes of threads are counted, or
    time of the model where that is more: it computes elsewhere then, such as on a GPU. The cheapest block of
    each kind counts, because whatever else runs on the machine only makes dearer.

    Args:
        cpu: processor time of this process in seconds, for tests.
    """

    def __init__(self, cpu: Callable[[], float] = process_time) -> None:
        self.pays = True
        self._cpu = cpu
        self._lock = threading.Lock()  # of the trial; a count that threads lose elsewhere does no harm
        self._calls = self._done = 0
        self._pause, self._next = _PAUSE, 1
        self._block = -1  # of the trial that goes on
        self._begun = 0  # number of its first call
        # Processor time and finished calls when it had settled.
        self._counted: tuple[float, int] | None = None
        self._rows = 0
        self._costs, self._model = [math.inf, math.inf], [math.inf, math.inf]  # of a call: alone, stacked

    def stack(self, rows: int) -> bool:
        """Whether to offer the next call, of so many rows, for stacking."""
        self._calls += 1
        if self._block < 0 and self._calls < self._next:
            return self.pays
        if self._lock.acquire(blocking=False):
            try:
                self._go_on(rows)
            finally:
                self._lock.release()
        block = self._block
        return self.pays if block < 0 else _kind(block) == 1

    def alone(self, rows: int, seconds: float) -> None:
        """A call was computed alone in this time."""
        self._done += 1
        if rows == self._rows and seconds < self._model[0]:
            self._model[0] = seconds

    def stacked(self, calls: int, rows: int, seconds: float) -> None:
        """So many calls, of so many rows together, were stacked, computed and split in this time."""
        self._done += calls
        self._model[1] = min(self._model[1], seconds / rows * self._rows)

    def _go_on(self, rows: int) -> None:
        """Begin a trial, or end a block of the one that goes on when it had enough calls."""
        if self._block < 0:
            if self._calls < self._next:
                # Another thread ended the trial meanwhile.
                return
            self._rows = rows
            self._costs, self._model = [math.inf, math.inf], [math.inf, math.inf]
        elif self._counted is None:
            if self._calls - self._begun >= _SETTLE[_kind(self._block)]:
                self._counted = self._cpu(), self._done
            return
        else:
            spent, done = self._cpu() - self._counted[0], self._done - self._counted[1]
            # Calls that fail are not counted as done, and must not keep the trial going.
            many = done >= _MOST or self._calls - self._begun >= 4 * _MOST
            if not many and (done < _LEAST or spent < _BLOCK_SECONDS):
                return
            kind = _kind(self._block)
            self._costs[kind] = min(self._costs[kind], spent / max(done, 1))
        self._block, self._begun, self._counted = self._block + 1, self._calls, None
        if self._block == _BLOCKS:
            self._decide()

    def _decide(self) -> None:
        alone, stacked = map(max, self._costs, self._model)
        # Nothing was stacked when callers come one by one: then it does not matter.
        pays = self._model[1] == math.inf or stacked < _ENOUGH * alone
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if pays == self.pays else _PAUSE
        self.pays = pays
        self._block, self._next = -1, self._calls + self._pause


def _kind(block: int) -> int:
    """0 for a block of calls that are computed alone, 1 for one of calls that are stacked."""
    return (block + 1) % 2


class Company:
    """How many rows usually come together, so that nobody waits for callers that do not exist.

    Args:
        most: rows of the largest batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: deque[int] = deque([most], maxlen=8)
        self._waits = 0

    @property
    def enough(self) -> int:
        """Rows at which waiting for more is over; now and then as many as may be, to see if more come."""
        return self._most if self._waits % 16 == 0 else max(self._last)

    def gathered(self, rows: int) -> None:
        """So many rows had come together when a wait was over."""
        self._waits += 1
        self._last.append(rows)
