"""Waits for what shall come true."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

PATIENCE = 3.0
"""How many times longer a test waits than a free machine needs: others run beside it."""


def eventually(
    condition: Callable[[], object], seconds: float = 40.0, what: str = "what was waited for"
) -> float:
    """Wait until a condition holds and return how long that took; fail the test when it does not.

    Args:
        seconds: enough on a machine that does nothing else; a bar is held by looking at what is returned.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > PATIENCE * seconds:
            pytest.fail(f"not within {PATIENCE * seconds:g} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - begun
