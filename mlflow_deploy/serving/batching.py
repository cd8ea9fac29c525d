"""Adaptive micro-batching: requests that wait for the model are computed together in one call of it."""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter
from typing import Any

from mlflow_deploy.serving.backends.base import Call, Stackable
from mlflow_deploy.serving.errors import DeadlineExceeded


class _Entry:
    """A waiting call; its gate opens when it has its result, or when it must lead the next batch."""

    __slots__ = ("call", "error", "gate", "leads", "result")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.gate = threading.Lock()
        self.gate.acquire()
        self.leads = False
        self.result: Any = None
        self.error: Exception | None = None


class Batcher:
    """Stacks the rows of calls that wait while the model is busy.

    The thread that finds the model idle computes its own call at once, so a lone request waits for nobody
    unless `delay_seconds` says so. Calls that come meanwhile queue up; the first of them leads the next batch.

    Args:
        model: computes stacked calls.
        max_rows: rows of one batch.
        delay_seconds: how long a leader waits for others.
        runners: batches computed at once.
    """

    def __init__(self, model: Stackable, max_rows: int, delay_seconds: float, runners: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._delay = delay_seconds
        self._idle = runners
        self._lock = threading.Lock()
        self._pending: deque[_Entry] = deque()
        self._rows = 0  # of the pending calls
        # A leader that waits for others holds its gate here; the arrival that fills its batch opens it.
        self._waiting: threading.Lock | None = None

    def run(self, call: Call, deadline: float) -> Any:
        """The call's own result, whoever computed it.

        Args:
            deadline: longest wait in seconds; 0 = no limit.

        Raises:
            DeadlineExceeded: nobody came to compute the call in time.
            Exception: what the model raises for this call.
        """
        entry = _Entry(call)
        with self._lock:
            lead = self._idle > 0
            if lead:
                self._idle -= 1
            else:
                self._pending.append(entry)
                self._rows += call.rows
                if self._waiting is not None and self._rows >= self._max_rows - 1:
                    self._waiting.release()
                    self._waiting = None
        if not lead:
            self._await(entry, deadline)
            lead = entry.leads
        if lead:
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result

    def _await(self, entry: _Entry, deadline: float) -> None:
        if entry.gate.acquire(timeout=deadline or -1):
            return
        with self._lock:
            if entry in self._pending:
                self._pending.remove(entry)
                self._rows -= entry.call.rows
                raise DeadlineExceeded(deadline)
        # It is being computed right now, or was just told to lead.
        entry.gate.acquire()

    def _lead(self, entry: _Entry) -> None:
        entries = [entry]
        try:
            entries = self._gather(entry)
            self._compute(entries)
        finally:
            with self._lock:
                successor = self._pending.popleft() if self._pending else None
                if successor is None:
                    self._idle += 1
                else:
                    self._rows -= successor.call.rows
            for mate in entries[1:]:
                mate.gate.release()
            if successor is not None:
                successor.leads = True
                successor.gate.release()

    def _gather(self, first: _Entry) -> list[_Entry]:
        """The first entry and those waiting ones that can be stacked on it."""
        if self._delay:
            self._wait_for_others()
        entries, rows = [first], first.call.rows
        with self._lock:
            left: deque[_Entry] = deque()
            for entry in self._pending:
                fits = rows + entry.call.rows <= self._max_rows
                if fits and entry.call.stackable == first.call.stackable:
                    entries.append(entry)
                    rows += entry.call.rows
                else:
                    left.append(entry)
            self._pending = left
            self._rows -= rows - first.call.rows
        return entries

    def _wait_for_others(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            # One leader waits at a time; another that is free meanwhile computes what is there.
            if self._waiting is not None or self._rows >= self._max_rows - 1:
                return
            self._waiting = gate
        gate.acquire(timeout=self._delay)
        with self._lock:
            if self._waiting is gate:
                self._waiting = None

    def _compute(self, entries: list[_Entry]) -> None:
        calls = [entry.call for entry in entries]
        if len(calls) == 1:
            self._alone(entries[0])
            return
        begun = perf_counter()
        try:
            stacked = self._model.stack(calls)
            stacked.expires = max(call.expires for call in calls)
            results = self._model.split(self._model.run(stacked), calls)
        except Exception:  # noqa: BLE001 - one bad request must not fail the others: each is tried alone
            for entry in entries:
                self._alone(entry)
            return
        ended = perf_counter()
        for entry, result in zip(entries, results, strict=True):
            entry.result = result
            entry.call.begun, entry.call.ended, entry.call.batch = begun, ended, 0
        calls[0].batch = stacked.rows

    def _alone(self, entry: _Entry) -> None:
        call = entry.call
        call.begun, call.batch = perf_counter(), call.rows
        try:
            entry.result = self._model.run(call)
        except Exception as error:  # noqa: BLE001 - raised again in the thread whose request it is
            entry.error = error
        call.ended = perf_counter()
