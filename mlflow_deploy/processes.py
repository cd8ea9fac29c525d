"""What processes owe each other: one that was started for another ends with it."""

from __future__ import annotations

import ctypes
import os
import signal

STARTED_BY = os.getppid()
"""Process id of the parent when this module was imported; programs import it before what takes long."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals, parent: int = STARTED_BY) -> None:
    """Have the kernel send this process a signal when its parent dies, or send it now when it is dead.

    Args:
        parent: process id of the parent; by default of the one that had started this program.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:
        # It died before the request reached the kernel.
        os.kill(os.getpid(), number)
