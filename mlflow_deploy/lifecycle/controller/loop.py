"""The controller's loop: one at a time holds the lease and looks at the registry again and again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle.controller.keeping import Records, keep_moves
from mlflow_deploy.lifecycle.controller.lease import Lease
from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
from mlflow_deploy.lifecycle.controller.preparing import Preparing, Upcoming
from mlflow_deploy.lifecycle.controller.reconcile import Event, reconcile
from mlflow_deploy.lifecycle.controller.state import Memory
from mlflow_deploy.lifecycle.hints import Hints
from mlflow_deploy.lifecycle.policy import Policy
from mlflow_deploy.lifecycle.steps import Progress

_LOCK = "controller.lock"
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
    metrics: ControllerMetrics | None = None,
    lease: str = "default",
) -> bool:
    """Make deployments match the registry until told to stop.

    The policy file is read at every look. What cannot be done is told and tried again; deployments serve on
    meanwhile. Of several controllers with one state folder only one acts: it holds a lock that the kernel
    releases when it dies, however it dies. Of several state folders only that of the lease's holder acts.

    Args:
        interval: seconds between two looks; a hint that something was moved ends the wait.
        once: look once and return.
        metrics: to write into; None where nobody reads them.
        lease: name of the lease in MLflow; controllers of different places take different ones.

    Returns:
        Whether the last look went well.
    """
    home = state_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_lock(home / _LOCK, interval, stop, tell))
        looking = _Looking(home, metrics or ControllerMetrics(), Lease(home, lease))
        # Who looks once comes again soon, and then need not take it anew.
        stack.enter_context(looking.lease.renewed(give_back=not once))
        well, told = True, set[Event]()
        while not stop.is_set():
            events = looking.look(policy, models, every, progress)
            troubles = {each for each in events if each.action in ("error", "waiting")}
            well = not any(each.action in ("error", "failed") for each in events)
            for event in events:
                # The same trouble is told once, not at every look.
                if event not in told:
                    tell(event)
            told = troubles
            if any(each.action == "waiting" for each in events):
                if once and looking.lease.other_lives:
                    break
                stop.wait(min(interval, looking.lease.seconds / 10))
                continue
            looking.keep_records(policy)
            if once:
                break
            while not stop.is_set() and not looking.hints.waiting and looking.prepare(progress):
                pass
            looking.hints.wait(interval, stop)
        return well


class _Looking:
    """What is kept from one look to the next."""

    def __init__(self, home: Path, metrics: ControllerMetrics, lease: Lease) -> None:
        self._home = home
        self.lease = lease
        self.metrics = metrics
        self.hints = Hints()
        self._records = Records()
        self._preparing = Preparing()
        self._upcoming: list[Upcoming] = []

    def look(
        self, policy: Path | str | None, models: tuple[str, ...], every: bool, progress: Progress
    ) -> list[Event]:
        """Look once; what went wrong is an event."""
        begun, memory, up = time.monotonic(), None, False
        try:
            memory = Memory(self._home / _MEMORY)
            found = Policy.load(policy)
            other = self.lease.take()
            self.metrics.acting.set(0 if other else 1)
            if other:
                return [Event("", "", "waiting", reason=f"the {other} acts")]
            hints = self.hints.read()
            keep_moves(hints)
            self.hints.done()
            for hint in hints:
                self.metrics.hints.labels(hint.source).inc()
            self._upcoming = []
            events = reconcile(
                found, memory, models=models, every=every, progress=progress, upcoming=self._upcoming,
                holds=self.lease.holds,
            )  # fmt: skip
            up = True
        except DeployError as error:
            events = [Event("", "", "error", reason=error.text)]
        seen = [each for _, _, each in memory.all()] if memory else []
        self.metrics.looked(time.monotonic() - begun, up=up, events=events, seen=seen)
        return events

    def prepare(self, progress: Progress) -> bool:
        """Prepare one version that may be promoted next; returns whether there was one."""
        return self._preparing.next(self._upcoming, progress)

    def keep_records(self, policy: Path | str | None) -> None:
        """Log release records that MLflow does not have."""
        try:
            found = Policy.load(policy)
            seen = [each for _, _, each in Memory(self._home / _MEMORY).all()]
        except DeployError:
            # The look has told it.
            return
        stages = [each for part in (found.default, *found.models.values()) for each in part.stages]
        targets = {each.target for each in stages if each.deployment}
        self._records.flush(targets | {each.target for each in seen if each.deployment})
        self.metrics.records_waiting.set(self._records.waiting)


@contextlib.contextmanager
def _lock(
    path: Path, interval: float, stop: threading.Event, tell: Callable[[Event], None]
) -> Iterator[None]:
    """Wait until no other controller of this state folder acts."""
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
