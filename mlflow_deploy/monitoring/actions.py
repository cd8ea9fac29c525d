"""What follows from a window's verdict: messages to people, and the actions that the policy names.

The monitor job calls `after_window` for each result and `work_off` whenever it goes round its loop. Both may be
killed at any line and called again: a window counts once, a message is sent at least once and always with the
same id, and an action is asked for with an id until it was carried out.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy.config_monitor import ActionSpec, AlertSpec, MonitorAction
from mlflow_deploy.errors import DeployError
from mlflow_deploy.monitoring import notify
from mlflow_deploy.monitoring.action_requests import Act, request_of, wait_of, went_well, went_wrong
from mlflow_deploy.monitoring.alert_state import (
    ActionEntry,
    AlertState,
    Delivery,
    Level,
    Message,
    Notice,
    Standing,
    held,
    iso,
    read_state,
    seconds,
    write_state,
)
from mlflow_deploy.monitoring.results import WindowResult

_LOG = logging.getLogger("mlflow_deploy.monitoring")

_RANK: dict[Level, int] = {"ok": 0, "warning": 1, "alert": 2}
_COLUMNS_TOLD = 5
_ACTIONS_KEPT = 200


def after_window(
    data: Path,
    result: WindowResult,
    alert: AlertSpec,
    action: ActionSpec,
    *,
    now: float | None = None,
) -> None:
    """Take in the result of a window: decide what is told and what is done. Nothing is sent here.

    Args:
        data: the deployment's data folder.
        result: of a window; one that is not later than the last one of the same monitor is ignored.
        now: seconds since the epoch; None for this moment.

    Raises:
        DataError: the state of the alerts is damaged.
    """
    now = time.time() if now is None else now
    with held(data):
        state = read_state(data)
        if _take_in(state, result, alert, action, now):
            write_state(data, state)


def work_off(
    data: Path,
    deployment: str,
    alert: AlertSpec,
    action: ActionSpec,
    *,
    act: Act | None = None,
    now: Callable[[], float] = time.time,
) -> None:
    """Send the messages and carry out the actions that are due.

    Args:
        act: carries out actions; None where the monitor has no right over the target: they stay wanted until
            somebody who has it claims them.
        now: the clock, in seconds since the epoch.

    Raises:
        DataError: the state of the alerts is damaged.
    """
    with held(data):
        state = read_state(data)
        if state.pending and now() - state.pending_since >= alert.group_seconds:
            _post(state, deployment, alert, now())
            write_state(data, state)
        for delivery in [each for each in state.deliveries if each.due <= now()]:
            _deliver(state, delivery, alert, now())
            write_state(data, state)
        if act is None:
            return
        for entry in [each for each in state.actions if each.open and each.due <= now()]:
            while entry.open and entry.due <= now():
                _carry_out(entry, deployment, action, act, now())
                write_state(data, state)


def _take_in(
    state: AlertState, result: WindowResult, alert: AlertSpec, action: ActionSpec, now: float
) -> bool:
    verdict = state.standing(result.revision, result.kind, "verdict")
    health = state.standing(result.revision, result.kind, "health")
    checked = _move(health, "alert" if result.state == "error" else "ok", result)
    # Too few rows, or no reference, say nothing about what was found before. A window that got its labels days
    # later is news when no later window has a verdict.
    judged = result.state in _RANK and _move(verdict, result.state, result)
    if not (checked or judged):
        return False
    wanted: tuple[MonitorAction, ...] = getattr(action, result.kind)
    if "notify" in wanted and notify.channels(alert):
        for standing in [*([verdict] if judged else []), *([health] if checked else [])]:
            _tell(state, standing, result, alert, now)
    if judged and result.state == "alert" and verdict.streak >= action.after_windows:
        for name in wanted:
            if name != "notify":
                _want(state, name, result, action, now)
    del state.actions[:-_ACTIONS_KEPT]
    return True


def _move(standing: Standing, level: Level, result: WindowResult) -> bool:
    """Take a verdict in; False when this window, or a later one, was taken in before."""
    last = seconds(standing.window_end) if standing.window_end else -math.inf
    end = seconds(result.end)
    if (end, result.number) <= (last, standing.number):
        return False
    if level != "alert":
        standing.streak = 0
    elif end > last or not standing.streak:
        standing.streak += 1
    standing.window_end, standing.number = result.end, result.number
    if level == "ok":
        # Since when it lasted belongs into the message that it is over; the next problem sets it anew.
        standing.since = standing.since if standing.level != "ok" else ""
    elif standing.level == "ok":
        standing.since = result.start
    standing.level = level
    return True


def _tell(state: AlertState, standing: Standing, result: WindowResult, alert: AlertSpec, now: float) -> None:
    """Put a notice beside those that wait, when there is something new to tell."""
    enough = standing.topic == "health" or _RANK[standing.level] >= _RANK[alert.level]
    level: Level = standing.level if enough else "ok"
    worse = _RANK[level] > _RANK[standing.told]
    over = level == "ok" and standing.told != "ok"
    again = bool(standing.told_at) and level == standing.told != "ok" and alert.repeat_hours > 0
    again = again and now - seconds(standing.told_at) >= alert.repeat_hours * 3600
    known = standing.told != "ok"
    if not (worse or over or again):
        standing.told = level
        return
    standing.told, standing.told_at = level, iso(now)
    notice = _notice(standing, result, level, known=known)
    waiting = [
        each
        for each in state.pending
        if (each.revision, each.monitor, each.topic) == (notice.revision, notice.monitor, notice.topic)
    ]
    for each in waiting:
        state.pending.remove(each)
    if not (over and any(each.status == "firing" and not each.again for each in waiting)):
        state.pending.append(notice)
        state.pending_since = state.pending_since or now
    if not state.pending:
        state.pending_since = 0.0


def _notice(standing: Standing, result: WindowResult, level: Level, *, known: bool) -> Notice:
    distances = {
        name: values.get("statistic", 0.0)
        for name, values in result.columns.items()
        if values.get("drifted") and level != "ok"
    }
    most = sorted(distances, key=lambda name: -distances[name])[:_COLUMNS_TOLD]
    return Notice(
        status="recovered" if level == "ok" else "firing",
        level=level,
        again=known,
        revision=result.revision,
        monitor=result.kind,
        topic=standing.topic,
        summary=result.summary,
        reasons=result.reasons[:_COLUMNS_TOLD],
        window_start=result.start,
        window_end=result.end,
        since=standing.since,
        columns={name: distances[name] for name in most},
        values=result.values,
    )


def _want(
    state: AlertState, action: MonitorAction, result: WindowResult, settings: ActionSpec, now: float
) -> None:
    """Decide on an action; the cool-down and the limit may skip it, which is noted once."""
    earlier = [entry for entry in state.actions if entry.action == action]
    if any(entry.state == "wanted" and not entry.carried_out for entry in earlier):
        return
    taken = [entry.wanted for entry in earlier if entry.state != "skipped"]
    recent = [at for at in taken if now - at < settings.limit_days * 86400]
    entry = ActionEntry(
        id=f"{action}-r{result.revision}-{result.kind}-{result.start}",
        action=action,
        revision=result.revision,
        kind=result.kind,
        reason=f"{result.kind} alert of revision {result.revision}: {result.summary}",
        wanted=now,
    )
    if taken and now - max(taken) < settings.cooldown_hours * 3600:
        entry.state, entry.detail = "skipped", f"it was taken less than {settings.cooldown_hours:g} h before"
    elif len(recent) >= settings.limit:
        entry.state = "skipped"
        entry.detail = f"it was taken {len(recent)} times in {settings.limit_days:g} days, which is the limit"
    if entry.state == "skipped":
        _LOG.warning("action %s is skipped: %s", action, entry.detail)
        if earlier and (earlier[-1].state, earlier[-1].revision) == ("skipped", result.revision):
            return
    state.actions.append(entry)


def _post(state: AlertState, deployment: str, alert: AlertSpec, now: float) -> None:
    """Make one message of all notices that wait, for each channel."""
    message = Message(id=uuid.uuid4().hex, deployment=deployment, at=iso(now), notices=tuple(state.pending))
    state.deliveries += [
        Delivery(message=message, channel=channel, created=now, due=now) for channel in notify.channels(alert)
    ]
    state.actions += [
        ActionEntry(
            id=f"notify-{message.id}-{at}",
            action="notify",
            revision=notice.revision,
            kind=notice.monitor,
            reason=f"{notice.monitor} {notice.status}: {notice.summary}",
            wanted=now,
        )
        for at, notice in enumerate(message.notices)
        if not notice.again or notice.status == "recovered"
    ]
    state.pending, state.pending_since = [], 0.0


def _deliver(state: AlertState, delivery: Delivery, alert: AlertSpec, now: float) -> None:
    try:
        notify.send(delivery.channel, delivery.message, alert, now=now)
    except notify.NotDeliveredError as error:
        delivery.attempts += 1
        delivery.error = str(error)
        delivery.due = now + wait_of(delivery.attempts)
        _LOG.warning("message %s by %s: %s", delivery.message.id, delivery.channel, error)
        if now - delivery.created < alert.give_up_hours * 3600:
            return
        _LOG.error("message %s by %s is given up", delivery.message.id, delivery.channel)
        state.failed += 1
    else:
        state.delivered += 1
    state.deliveries.remove(delivery)


def _carry_out(entry: ActionEntry, deployment: str, settings: ActionSpec, act: Act, now: float) -> None:
    """Do what is next about a decision."""
    request = request_of(entry, deployment, settings)
    try:
        told = act(request)
    except DeployError as error:
        _LOG.warning("action %s: %s", entry.action, error.text)
        went_wrong(entry, request.phase, error.text, now)
    else:
        went_well(entry, request.phase, told)
