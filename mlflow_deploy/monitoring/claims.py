"""Lends what the job may not do itself to a command that may: actions, and results that MLflow lacks.

A container has no right over the engine that runs it, and does not reach every MLflow server. What is claimed
is kept from others for a while, so that two machines do not do it both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.monitoring.action_requests import (
    ActionRequest,
    Phase,
    request_of,
    went_well,
    went_wrong,
)
from mlflow_deploy.monitoring.alert_state import ActionEntry, held, read_state, write_state
from mlflow_deploy.monitoring.orders import acts_itself, read_order

UNLOGGED = "unlogged"
"""File in the folder of the monitors with why results wait for MLflow; absent when none do."""

_LENT_SECONDS = 900.0
_POLL_SECONDS = 1.0


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request.

    Attributes:
        told: what was done.
        error: why it could not be done now; empty when it was done.
    """

    id: str
    phase: Phase
    told: str = ""
    error: str = ""


def claim(data: Path, owner: str, *, now: float | None = None) -> list[ActionRequest]:
    """Lend the actions that are due.

    Args:
        owner: who carries them out; gets the same again at once, as after a kill. Others have to wait.
        now: seconds since the epoch; None for this moment.

    Raises:
        DataError: the state of the alerts is damaged.
    """
    now = time.time() if now is None else now
    order = read_order(data)
    if order is None or acts_itself(order):
        return []
    from mlflow_deploy.monitoring.jobs import spec_of

    settings = spec_of(max(order.revisions, key=lambda each: (each.active, each.number))).action
    with held(data):
        state = read_state(data)
        lent = [each for each in state.actions if _free(each, owner, now)]
        for entry in lent:
            entry.owner, entry.lent_until = owner, now + _LENT_SECONDS
        if lent:
            write_state(data, state)
        return [request_of(each, order.deployment, settings) for each in lent]


def settle(data: Path, outcomes: Sequence[Settled], *, now: float | None = None) -> int:
    """Take in what came of requests; returns how many. What was taken in before changes nothing.

    Args:
        now: seconds since the epoch; None for this moment.

    Raises:
        DataError: the state of the alerts is damaged.
    """
    now, count = time.time() if now is None else now, 0
    with held(data):
        state = read_state(data)
        known = {each.id: each for each in state.actions if each.open}
        for outcome in outcomes:
            entry = known.get(outcome.id)
            if entry is None or (outcome.phase == "do" and entry.carried_out):
                continue
            if outcome.error:
                went_wrong(entry, outcome.phase, outcome.error, now)
            else:
                went_well(entry, outcome.phase, outcome.told)
            entry.owner, entry.lent_until = "", 0.0
            count += 1
        write_state(data, state)
    return count


def wait_for_work(data: Path, owner: str, seconds: float, *, results: bool = False) -> dict[str, Any]:
    """Wait until there is something to do for somebody, at most so long.

    Args:
        results: results that wait for MLflow are something to do.

    Returns:
        `actions`: whether some are due; `unlogged`: why results wait for MLflow, or an empty string.
    """
    deadline = time.monotonic() + seconds
    while True:
        order, now = read_order(data), time.time()
        mine = order is not None and not acts_itself(order)
        due = mine and any(_free(each, owner, now) for each in read_state(data).actions)
        why = unlogged(data)
        if due or (why and results) or time.monotonic() >= deadline:
            return {"actions": due, "unlogged": why}
        time.sleep(_POLL_SECONDS)


def unlogged(data: Path) -> str:
    """Why results wait for MLflow; empty when none do."""
    from mlflow_deploy.targets.base_monitor import FOLDER

    path = data / FOLDER / UNLOGGED
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _free(entry: ActionEntry, owner: str, now: float) -> bool:
    return entry.open and entry.due <= now and (entry.owner in ("", owner) or entry.lent_until <= now)
