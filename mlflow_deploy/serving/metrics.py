"""Counts requests, times and rows in memory that all workers share, for `exposition`.

Each worker has one row of float64 cells in an anonymous shared mapping that the parent makes before it forks,
so a scrape that reaches any worker sees all of them, and a restarted worker goes on counting where the last
one stopped.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, overload

if TYPE_CHECKING:
    from mlflow_deploy.serving.backends.base import Call

PROTOCOLS = ("mlflow", "oip_http", "oip_grpc", "other")
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 501, 503, 504)
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_STATUS_AT = {status: at for at, status in enumerate(STATUSES)}
_OTHER_STATUS = _STATUS_AT[500]
TIMED = len(SECONDS) + 2  # buckets with the one above the last bound, and the sum
BATCHED = len(BATCHES) + 2

# The cells of a worker's row.
PID, LOAD, ACTIVE, WAITING, ROWS = range(5)
REQUESTS = 5
LATENCY = REQUESTS + len(PROTOCOLS) * len(STATUSES)
MODEL = LATENCY + len(PROTOCOLS) * TIMED
QUEUE = MODEL + TIMED
BATCH = QUEUE + TIMED
_ROW = BATCH + BATCHED
_TOGETHER = 64  # requests that are counted at once
_HEAD = 8  # cells before the first row; the first one is the draining flag


class Cells(Protocol):
    """A memoryview of float64, whose stub knows bytes only."""

    @overload
    def __getitem__(self, at: int) -> float: ...
    @overload
    def __getitem__(self, at: slice) -> Cells: ...
    def __getitem__(self, at: Any) -> Any: ...
    def __setitem__(self, at: int, value: float) -> None: ...
    def tolist(self) -> list[float]: ...


class SharedMetrics:
    """The mapping with the rows of all workers, and the flag that the server is stopping."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._cells: Cells = memoryview(mmap.mmap(-1, (_HEAD + workers * _ROW) * 8)).cast("d")  # type: ignore[assignment]

    @property
    def draining(self) -> bool:
        """The server was told to stop."""
        return self._cells[0] != 0.0

    def drain(self) -> None:
        """Tell all workers that the server stops."""
        self._cells[0] = 1.0

    def row(self, worker: int) -> Cells:
        """The cells of a worker."""
        start = _HEAD + worker * _ROW
        return self._cells[start : start + _ROW]

    def rows(self) -> list[list[float]]:
        """A copy of all workers' cells."""
        return [self.row(worker).tolist() for worker in range(self.workers)]


class WorkerMetrics:
    """One worker's counters; every method may be called from several threads at once."""

    def __init__(self, shared: SharedMetrics, worker: int) -> None:
        self.shared = shared
        self._cells = shared.row(worker)
        self._lock = threading.Lock()
        # Counting is cheaper in a row than request by request, between which its code leaves the caches.
        self._answered: deque[tuple[int, int, float, float, Call | None]] = deque()
        # A predecessor that was killed left its gauges standing.
        self._cells[PID] = os.getpid()
        self._cells[ACTIVE] = self._cells[WAITING] = 0

    def loaded(self, seconds: float) -> None:
        """The model was loaded and warmed up in this time."""
        self._cells[LOAD] = seconds

    def gauges(self, active: int, waiting: int) -> None:
        """How many requests are in the model or its queue now, and how many of them wait."""
        self._cells[ACTIVE] = active
        self._cells[WAITING] = waiting

    def answered(self, protocol: int, status: int, arrived: float, ended: float, call: Call | None) -> None:
        """A request was answered; it is counted with others at the next `flush`, or here when enough wait.

        Args:
            protocol: position in PROTOCOLS.
            arrived: `time.perf_counter()` at its arrival.
            ended: the same at its answer.
            call: what it asked the model; None when it did not get so far.
        """
        answered = self._answered
        answered.append((protocol, status, ended - arrived, arrived, call))
        if len(answered) >= _TOGETHER and self._lock.acquire(blocking=False):
            try:
                self._count_waiting()
            finally:
                self._lock.release()

    def flush(self) -> None:
        """Count what was answered since the last time; called a few times a second and at a scrape."""
        with self._lock:
            self._count_waiting()

    def _count_waiting(self) -> None:
        # What is appended meanwhile is for the next time.
        for _ in range(len(self._answered)):
            self._count(*self._answered.popleft())

    def _count(self, protocol: int, status: int, seconds: float, arrived: float, call: Call | None) -> None:
        cells = self._cells
        latency = LATENCY + protocol * TIMED
        cells[REQUESTS + protocol * len(STATUSES) + _STATUS_AT.get(status, _OTHER_STATUS)] += 1
        cells[latency + bisect_left(SECONDS, seconds)] += 1
        cells[latency + TIMED - 1] += seconds
        if call is None or not call.ended:
            return
        queued, computed = call.begun - arrived, call.ended - call.begun
        cells[ROWS] += call.rows
        cells[QUEUE + bisect_left(SECONDS, queued)] += 1
        cells[QUEUE + TIMED - 1] += queued
        cells[MODEL + bisect_left(SECONDS, computed)] += 1
        cells[MODEL + TIMED - 1] += computed
        if call.batch:
            cells[BATCH + bisect_left(BATCHES, call.batch)] += 1
            cells[BATCH + BATCHED - 1] += call.batch
