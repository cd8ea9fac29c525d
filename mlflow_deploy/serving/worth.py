"""Learns from the calls themselves whether it pays to stack them, for the model at hand on this machine."""

from __future__ import annotations

import math
from collections import deque

STACKING_SECONDS = 15e-6
"""What a stacked call costs beside its share of the model call: the queue, at times a change of thread."""

_ALONE = 24  # calls of a trial that are computed alone
_TOGETHER = 96  # calls of a trial that may be stacked
_PAUSE = 2048  # calls between two trials at first; each trial with the same outcome doubles it
_LONGEST_PAUSE = 1 << 17


class Worth:
    """Runs a trial now and then: some calls alone, some stacked; what was faster holds until the next one.

    The fastest call of each kind counts, because whatever else runs on the machine only makes slower. It is
    called by several threads without a lock: a lost count moves a trial by a call.
    """

    def __init__(self) -> None:
        self.pays = True
        self._pause = _PAUSE
        self._trial = 0  # number of the call that the trial began with
        self._calls = -1
        self._rows = 0
        self._alone = self._stacked = math.inf

    def stack(self, rows: int) -> bool:
        """Whether to offer the next call, of so many rows, for stacking."""
        self._calls += 1
        at = self._calls - self._trial
        if at >= self._pause:
            self._trial, at = self._calls, 0
        if at == 0:
            self._rows, self._alone, self._stacked = rows, math.inf, math.inf
        if at < _ALONE:
            return False
        if at == _ALONE + _TOGETHER:
            self._decide()
        return at < _ALONE + _TOGETHER or self.pays

    def alone(self, rows: int, seconds: float) -> None:
        """A call was computed alone in this time."""
        if rows == self._rows and seconds < self._alone:
            self._alone = seconds

    def stacked(self, rows: int, seconds: float) -> None:
        """Several calls, of so many rows together, were stacked, computed and split in this time."""
        self._stacked = min(self._stacked, seconds / rows * self._rows)

    def _decide(self) -> None:
        # Nothing was stacked when callers come one by one: then it does not matter.
        pays = self._stacked == math.inf or self._alone - self._stacked > STACKING_SECONDS
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if pays == self.pays else _PAUSE
        self.pays = pays


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
