"""Lets a bounded number of requests into the model, a bounded number wait, and refuses the rest."""

from __future__ import annotations

import queue
import threading
import time

from mlflow_deploy.serving.errors import DeadlineExceeded, QueueFull


class Admission:
    """The door to the model.

    Args:
        slots: requests inside at once.
        queue_size: requests that may wait.
        deadline_seconds: longest time from a request's arrival until it is let in; 0 = no limit.
    """

    def __init__(self, slots: int, queue_size: int, deadline_seconds: float) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put(None)
        self._lock = threading.Lock()
        self._queue_size = queue_size
        self._deadline = deadline_seconds
        self._slots = slots
        self.waiting = 0

    @property
    def active(self) -> int:
        """Requests inside or waiting."""
        return self._slots - self._free.qsize() + self.waiting

    def enter(self, arrived: float) -> None:
        """Take a slot, waiting for one if need be; `leave` must follow.

        Args:
            arrived: `time.perf_counter()` at the request's arrival.

        Raises:
            QueueFull: too many wait already.
            DeadlineExceeded: the wait was too long.
        """
        # As `enter_at_once`, without its call: every request comes through here.
        try:
            self._free.get_nowait()
        except queue.Empty:
            self._wait(arrived)

    def enter_at_once(self) -> bool:
        """Take a slot when there is a free one; then `leave` must follow."""
        try:
            self._free.get_nowait()
        except queue.Empty:
            return False
        return True

    def _wait(self, arrived: float) -> None:
        with self._lock:
            if self.waiting >= self._queue_size:
                raise QueueFull(
                    "The server is busy and its queue is full",
                    hint="Send the request again later, or raise serving.queue_size or the number of workers",
                )
            self.waiting += 1
        try:
            if not self._deadline:
                self._free.get()
                return
            left = arrived + self._deadline - time.perf_counter()
            self._free.get(timeout=max(left, 0.0))
        except queue.Empty:
            raise DeadlineExceeded(self._deadline) from None
        finally:
            with self._lock:
                self.waiting -= 1

    def leave(self) -> None:
        """Give the slot back."""
        self._free.put(None)
