"""Counts requests, times and rows in memory that all workers share, for `exposition`.

Each worker has one row of float64 cells in an anonymous shared mapping that the parent makes before it forks,
so a scrape that reaches any worker sees all of them, and a restarted worker goes on counting where the last
one stopped.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow_deploy.serving.backends.base import Call

PROTOCOLS = ("mlflow", "oip_http", "oip_grpc", "other")
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 501, 503, 504)
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_SECONDS, _BATCHES = np.array(SECONDS), np.array(BATCHES, np.float64)
_STATUS_AT = {status: at for at, status in enumerate(STATUSES)}
_OTHER_STATUS = _STATUS_AT[500]
TIMED = len(SECONDS) + 2  # buckets with the one above the last bound, and the sum
BATCHED = len(BATCHES) + 2

# The cells of a worker's row.
PID, LOAD, ACTIVE, WAITING, CAPTURED, UNCAPTURED, UNWRITTEN, LABELS, SPANS, UNSENT, ROWS = range(11)
REQUESTS = 11
LATENCY = REQUESTS + len(PROTOCOLS) * len(STATUSES)
MODEL = LATENCY + len(PROTOCOLS) * TIMED
QUEUE = MODEL + TIMED
BATCH = QUEUE + TIMED
_ROW = BATCH + BATCHED
_TOGETHER = 256  # requests that are counted at once
_FACTS = 7  # numbers that are kept of each until then
_HEAD = 8  # cells before the first row; the first one is the draining flag


Cells = NDArray[np.float64]


class SharedMetrics:
    """The mapping with the rows of all workers, and the flag that the server is stopping."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        memory = mmap.mmap(-1, (_HEAD + workers * _ROW) * 8)
        self._cells: Cells = np.frombuffer(memory, np.float64)
        # Each request asks for the flag, and a byte is read several times faster than an array's number.
        self._flag = memoryview(memory)[:1]

    @property
    def draining(self) -> bool:
        """The server was told to stop."""
        return self._flag[0] != 0

    def drain(self) -> None:
        """Tell all workers that the server stops."""
        self._flag[0] = 1

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
        # Many requests are counted in one go, which costs a tenth of counting each.
        self._answered: deque[tuple[float, ...]] = deque()
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

    def captured(self, requests: int, lost: int, write_errors: int) -> None:
        """So many more requests were captured, or were not although they should, and writes failed."""
        self._cells[CAPTURED] += requests
        self._cells[UNCAPTURED] += lost
        self._cells[UNWRITTEN] += write_errors

    def labelled(self, labels: int) -> None:
        """So many more labels came."""
        with self._lock:
            self._cells[LABELS] += labels

    def traced(self, sent: int, lost: int) -> None:
        """So many more spans reached the collector, or did not although they should."""
        with self._lock:
            self._cells[SPANS] += sent
            self._cells[UNSENT] += lost

    def answered(self, protocol: int, status: int, arrived: float, ended: float, call: Call | None) -> None:
        """A request was answered; it is counted with others at the next `flush`, or here when enough wait.

        Args:
            protocol: position in PROTOCOLS.
            arrived: `time.perf_counter()` at its arrival.
            ended: the same at its answer.
            call: what it asked the model; None when it did not get so far.
        """
        answered = self._answered
        line = protocol * len(STATUSES) + _STATUS_AT.get(status, _OTHER_STATUS)
        if call is None or not call.ended:
            answered.append((line, ended - arrived, -1.0, 0.0, 0.0, 0.0, protocol))
        else:
            begun = call.begun
            answered.append(
                (line, ended - arrived, begun - arrived, call.ended - begun, call.rows, call.batch, protocol)
            )
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
        answered = self._answered
        # What is appended meanwhile is for the next time.
        waiting = [answered.popleft() for _ in range(len(answered))]
        if not waiting:
            return
        facts = np.fromiter(chain.from_iterable(waiting), np.float64, _FACTS * len(waiting))
        line, seconds, queued, computed, rows, batch, protocol = facts.reshape(-1, _FACTS).T
        latency = LATENCY + protocol.astype(np.intp) * TIMED
        # The gauges before the counters are set by others meanwhile.
        cells = self._cells[ROWS:]
        cells += _tally(REQUESTS + line.astype(np.intp))
        cells += _tally(latency + np.searchsorted(_SECONDS, seconds))
        cells += _tally(latency + TIMED - 1, seconds)
        modelled = queued >= 0.0
        if not modelled.any():
            return
        for start, bounds, values, counted in (
            (QUEUE, _SECONDS, queued, modelled),
            (MODEL, _SECONDS, computed, modelled),
            (BATCH, _BATCHES, batch, batch > 0.0),
        ):
            picked = values[counted]
            cells += _tally(start + np.searchsorted(bounds, picked))
            self._cells[start + len(bounds) + 1] += picked.sum()
        self._cells[ROWS] += rows.sum()


def _tally(places: NDArray[np.intp], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """How often, or with which sum of weights, each cell from ROWS on was named."""
    return np.bincount(places - ROWS, weights, minlength=_ROW - ROWS).astype(np.float64, copy=False)
