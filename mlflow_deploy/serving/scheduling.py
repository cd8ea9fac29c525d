"""Who gives way to whom on a processor that the threads of a worker share.

A thread that answers wakes granian's network thread for each answer. By the kernel's rule the network thread,
which has used less of the processor, then takes it at once, sends one answer and gives it back: two changes
of threads and cold caches for each request. A thread of the batch class never interrupts another one, so that
the answers of several requests are sent in one go; with a processor to spare it runs just as soon.
"""

from __future__ import annotations

import os
import threading

from mlflow_deploy.serving.logs import logger

_mine = threading.local()


def give_way() -> None:
    """Put the calling thread, and all that it will start, into the batch class."""
    _set(os.SCHED_BATCH)


def stand_firm() -> None:
    """Put the calling thread back into the normal class; free of charge when it is there already."""
    if not hasattr(_mine, "firm"):
        _mine.firm = True
        _set(os.SCHED_OTHER)


def _set(policy: int) -> None:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError as error:
        # A sandbox that forbids it costs speed only.
        logger().info("the scheduling class cannot be set", extra={"fields": {"cause": error.strerror}})
