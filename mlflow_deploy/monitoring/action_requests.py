"""What is asked of whoever carries an action out, and how what came of it changes the decision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from mlflow_deploy.config_monitor import ActionSpec, MonitorAction
from mlflow_deploy.errors import MonitorActionFailed
from mlflow_deploy.monitoring.alert_state import ActionEntry

Phase = Literal["do", "note"]

ACTOR = "mlflow_deploy.lifecycle.monitor_actions"
"""The module that carries actions out; started by its name, because it knows targets and this room does not."""

_TRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 900.0
_NOTE_WAIT = 30.0  # another command has the history for as long as its rollout takes
_NOTE_SECONDS = 86400.0  # a history that was busy for so long is given up
_ACT_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True)
class ActionRequest:
    """An action to carry out.

    Attributes:
        id: the same when it is asked for again after a kill.
        phase: `do` carries it out; `note` only writes what came of it into the deployment's history, which has
            to wait while another command works on the deployment.
        revision: the one that the monitor watches, which is left alone when it serves no more.
        detail: in phase `note`, what was done, or why it could not be.
        failed: in phase `note`, that it could not be done.
        settings: `monitor.action.*`, as plain values.
    """

    id: str
    phase: Phase
    deployment: str
    action: MonitorAction
    revision: int
    reason: str
    detail: str = ""
    failed: bool = False
    settings: dict[str, Any]


Act = Callable[[ActionRequest], str]
"""Carries a phase of an action out and tells what it did. It may be asked again for the same after a kill.
Raises DeployError when it cannot be done now."""


def request_of(entry: ActionEntry, deployment: str, settings: ActionSpec) -> ActionRequest:
    """What has to be done next about a decision: carry it out, or write what came of it into the history."""
    phase: Phase = "note" if entry.carried_out or entry.action == "notify" else "do"
    return ActionRequest(
        id=entry.id,
        phase=phase,
        deployment=deployment,
        action=cast(MonitorAction, entry.action),
        revision=entry.revision,
        reason=entry.reason,
        detail=entry.detail if phase == "note" else "",
        failed=entry.failed,
        settings=settings.model_dump(mode="json"),
    )


def went_well(entry: ActionEntry, phase: Phase, told: str) -> None:
    """Take in that a phase was done, and what it told."""
    if phase == "do":
        entry.detail, entry.carried_out, entry.attempts = told, True, 0
    else:
        entry.state = "failed" if entry.failed else "done"


def went_wrong(entry: ActionEntry, phase: Phase, why: str, now: float) -> None:
    """Take in that a phase could not be done now; it is tried again, and given up at last."""
    entry.attempts += 1
    wait = wait_of(entry.attempts)
    entry.due = now + (wait if phase == "do" else min(wait, _NOTE_WAIT))
    if phase == "do":
        entry.detail = why
        if entry.attempts >= _TRIES:
            entry.carried_out = entry.failed = True
            entry.attempts = 0
    elif now - entry.wanted > _NOTE_SECONDS:
        entry.state = "failed" if entry.failed else "done"


def wait_of(attempts: int) -> float:
    """Seconds until the next try after so many."""
    return min(_FIRST_WAIT * 2.0 ** (attempts - 1), _LONGEST_WAIT)


def act_by_program(target: str) -> Act:
    """Carries actions out in a process of its own, so that a monitor that waits stays small."""

    def act(request: ActionRequest) -> str:
        try:
            done = subprocess.run(
                [sys.executable, "-m", ACTOR, "--target", target],
                input=msgspec.json.encode(request),
                capture_output=True,
                timeout=_ACT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MonitorActionFailed(request.action, f"not done within {_ACT_SECONDS:g} s") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise MonitorActionFailed(request.action, lines[-1] if lines else f"status {done.returncode}")
        return done.stdout.decode(errors="replace").strip()

    return act
