"""The controller's loop: one at a time holds the lease and looks at the registry again and again."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle.controller.reconcile import Event, reconcile
from mlflow_deploy.lifecycle.controller.state import Memory
from mlflow_deploy.lifecycle.policy import Policy
from mlflow_deploy.lifecycle.steps import Progress

_LEASE = "controller.lock"
_MEMORY = "controller.json"


def follow(
    *,
    policy: Path | str | None,
    models: tuple[str, ...],
    every: bool,
    interval: float,
    once: bool,
    stop: threading.Event,
    tell: Callable[[Event], None],
    progress: Progress,
) -> bool:
    """Make deployments match the registry until told to stop.

    The policy file is read at every look. What cannot be done is told and tried again; deployments serve on
    meanwhile. Of several controllers with one state folder only one acts: it holds a lock that the kernel
    releases when it dies, however it dies.

    Args:
        interval: seconds between two looks.
        once: look once and return.

    Returns:
        Whether the last look went well.
    """
    home = state_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lease(home / _LEASE, interval, stop, tell):
        well, told = True, ""
        while not stop.is_set():
            try:
                memory = Memory(home / _MEMORY)
                found = Policy.load(policy)
                events = reconcile(found, memory, models=models, every=every, progress=progress)
                told, well = "", not any(each.action in ("error", "failed") for each in events)
            except DeployError as error:
                # The same trouble is told once, not at every look.
                events, well = (
                    [Event("", "", "error", reason=error.text)] if error.text != told else [],
                    False,
                )
                told = error.text
            for event in events:
                tell(event)
            if once:
                break
            stop.wait(interval)
        return well


@contextlib.contextmanager
def _lease(
    path: Path, interval: float, stop: threading.Event, tell: Callable[[Event], None]
) -> Iterator[None]:
    """Wait until no other controller acts."""
    waiting = False
    while not stop.is_set():
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False, owner=f"controller of process {os.getpid()}"))
            except LockHeldError as held:
                if not waiting:
                    tell(Event("", "", "waiting", reason=f"the {held.owner} acts"))
                waiting = True
                stop.wait(min(interval, 1.0))
                continue
            yield
            return
    yield
