"""Keeps the threads that answer requests few while answers are quick, and many while they are slow.

granian hands each request to whichever thread has waited longest. When many threads take turns at requests of
a few microseconds, the processor spends more time on changing threads than on the requests, and the caches are
cold each time. So a thread that has answered stays away for a moment when enough others just answered, too.
"""

from __future__ import annotations

import random
import time
from threading import get_ident

_RECENT_SECONDS = 0.002
_REST_SECONDS = 0.25


class Crew:
    """The threads that answered last.

    Args:
        size: threads that keep answering.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._answered: dict[int, float] = {}

    def finished(self, now: float) -> None:
        """Called by a thread after each answer; returns when it should take the next request.

        A member that hangs in a slow request or has gone is replaced by the next thread that finishes, and
        those that rest come back by themselves, so that a request never waits for a particular thread.

        Args:
            now: `time.perf_counter()` after the answer.
        """
        answered, me = self._answered, get_ident()
        if me in answered or len(answered) < self._size:
            answered[me] = now
            return
        for other, last in tuple(answered.items()):
            if now - last > _RECENT_SECONDS:
                answered.pop(other, None)
                answered[me] = now
                return
        # They come back one by one, not all at once.
        time.sleep(_REST_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
