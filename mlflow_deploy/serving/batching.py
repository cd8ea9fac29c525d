"""Adaptive micro-batching: requests that come together are computed together in one call of the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from mlflow_deploy.serving.backends.base import Call, Stackable
from mlflow_deploy.serving.errors import DeadlineExceeded
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.worth import Company, Worth

Done = Callable[[Any, Exception | None], None]
"""Takes a call's result, or the exception that it raised; called once, in any thread, and raises nothing."""


class _Entry:
    """A call that waits to be computed."""

    __slots__ = ("call", "done", "error", "result", "since")

    def __init__(self, call: Call, done: Done) -> None:
        self.call = call
        self.done = done
        self.since = perf_counter()
        self.result: Any = None
        self.error: Exception | None = None


class Batcher:
    """Stacks the rows of calls that wait for each other or for the model.

    No thread waits for its call: the one whose call completes a batch computes it for all. A batch that is not
    complete when its first call has waited `delay_seconds`, or that came together while the model was busy, is
    computed by a thread of the batcher's own. Without a delay, a call that finds the model idle is computed at
    once.

    Args:
        model: computes stacked calls.
        max_rows: rows of one batch.
        delay_seconds: how long a call waits for others.
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
        self._due = threading.Event()
        self._asleep = False  # the batcher's own thread waits for a first call
        self.worth = Worth()
        self._company = Company(max_rows)
        threading.Thread(target=self._watch, name="batches", daemon=True).start()

    def run(self, call: Call, deadline: float) -> Any:
        """The call's own result, waited for.

        Args:
            deadline: longest wait in seconds; 0 = no limit.

        Raises:
            DeadlineExceeded: nobody came to compute the call in time.
            Exception: what the model raises for this call.
        """
        gate = threading.Lock()
        gate.acquire()
        entry = self.submit(call, lambda *_: gate.release())
        if not gate.acquire(timeout=deadline or -1):
            if self._withdraw(entry):
                raise DeadlineExceeded(deadline)
            gate.acquire()
        if entry.error is not None:
            raise entry.error
        return entry.result

    def submit(self, call: Call, done: Done) -> _Entry:
        """Have the call computed; `done` is called with the result, maybe before this returns."""
        entry = _Entry(call, done)
        batch: list[_Entry] = []
        with self._lock:
            self._pending.append(entry)
            self._rows += call.rows
            if self._idle and (not self._delay or self._rows >= self._company.enough):
                self._idle -= 1
                batch = self._take()
            wake = self._asleep and bool(self._pending)
            if wake:
                self._asleep = False
        if wake:
            self._due.set()
        if batch:
            self._finish(batch)
        return entry

    def expire(self, now: float) -> None:
        """Refuse the calls that still wait past their `expires`."""
        with self._lock:
            late = [entry for entry in self._pending if now > entry.call.expires]
            for entry in late:
                self._drop(entry)
        for entry in late:
            entry.error = TimeoutError("the call was not computed in time")
            entry.done(None, entry.error)

    def _withdraw(self, entry: _Entry) -> bool:
        with self._lock:
            waits = entry in self._pending
            if waits:
                self._drop(entry)
        return waits

    def _drop(self, entry: _Entry) -> None:
        self._pending.remove(entry)
        self._rows -= entry.call.rows

    def _take(self) -> list[_Entry]:
        """The first pending entry and those that can be stacked on it; the lock is held."""
        first = self._pending.popleft()
        entries, rows = [first], first.call.rows
        left: deque[_Entry] = deque()
        for entry in self._pending:
            if rows + entry.call.rows <= self._max_rows and entry.call.stackable == first.call.stackable:
                entries.append(entry)
                rows += entry.call.rows
            else:
                left.append(entry)
        self._pending = left
        self._rows -= rows
        self._company.gathered(rows)
        return entries

    def _watch(self) -> None:
        """Compute the batches that no caller computes."""
        while True:
            batch: list[_Entry] = []
            wait: float | None = None
            with self._lock:
                self._due.clear()
                if not self._pending:
                    self._asleep = True
                elif self._idle:
                    wait = self._pending[0].since + self._delay - perf_counter()
                    if wait <= 0 or self._rows >= self._company.enough:
                        self._idle -= 1
                        batch = self._take()
                # Without an idle runner, the one that finishes next sets `_due`.
            if batch:
                self._finish(batch)
            else:
                self._due.wait(wait)

    def _finish(self, entries: list[_Entry]) -> None:
        """Compute a batch, make room for the next one, and tell the callers."""
        try:
            self._compute(entries)
        finally:
            with self._lock:
                self._idle += 1
                more = bool(self._pending) and not self._asleep
            if more:
                self._due.set()
        for entry in entries:
            try:
                entry.done(entry.result, entry.error)
            except Exception:  # noqa: BLE001 - the others of the batch must get their answers
                logger().exception("an answer could not be sent")

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
        self.worth.stacked(len(calls), stacked.rows, ended - begun)
        for entry, result in zip(entries, results, strict=True):
            entry.result = result
            entry.call.begun, entry.call.ended, entry.call.batch = begun, ended, 0
        calls[0].batch = stacked.rows

    def _alone(self, entry: _Entry) -> None:
        call = entry.call
        call.begun, call.batch = perf_counter(), call.rows
        try:
            entry.result = self._model.run(call)
        except Exception as error:  # noqa: BLE001 - handed to the caller whose request it is
            entry.error = error
        call.ended = perf_counter()
        self.worth.alone(call.rows, call.ended - call.begun)
