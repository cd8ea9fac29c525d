"""What the alerts of a deployment stand at, with the messages and actions that are still to be done: one file.

A verdict and what follows from it must not come apart when the monitor is killed between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from mlflow_deploy.errors import DataError
from mlflow_deploy.files import locked, write_atomic
from mlflow_deploy.monitoring.results import MonitorKind

FOLDER = "monitor"
_STATE, _LOCK = "alerts.json", "alerts.lock"

Topic = Literal["verdict", "health"]
"""verdict: what a monitor found; health: whether it could look at all."""
Level = Literal["ok", "warning", "alert"]
Channel = Literal["webhook", "slack", "email", "command"]


class Standing(msgspec.Struct, kw_only=True):
    """What one topic of one monitor of one revision stands at.

    Attributes:
        window_end: end of the latest window that was taken in, UTC, ISO 8601; a verdict takes in those that
            have one.
        number: which result of that window.
        level: the latest verdict; windows without one leave it as it was.
        streak: windows in a row with an alert.
        since: start of the first window at this problem; empty without one.
        told: level that somebody was told of; `ok` when nobody was told, or of its end.
        told_at: when, UTC, ISO 8601; empty for never.
    """

    revision: int
    kind: MonitorKind
    topic: Topic
    window_end: str = ""
    number: int = 0
    level: Level = "ok"
    streak: int = 0
    since: str = ""
    told: Level = "ok"
    told_at: str = ""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell: a problem began, got worse or goes on, or it is over.

    Attributes:
        again: somebody was told of this problem before.
        columns: name -> distance of the columns that moved most, of a drift alert.
        values: numbers of the window, by name.
    """

    status: Literal["firing", "recovered"]
    level: Level
    again: bool = False
    revision: int
    monitor: MonitorKind
    topic: Topic
    summary: str
    reasons: tuple[str, ...] = ()
    window_start: str
    window_end: str
    since: str = ""
    columns: dict[str, float] = {}
    values: dict[str, float] = {}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent at once: everything that the monitors of a deployment have to tell.

    Attributes:
        id: the same in every try and over every channel, so that a receiver can drop what it has already.
    """

    id: str
    deployment: str
    at: str
    notices: tuple[Notice, ...]


class Delivery(msgspec.Struct, kw_only=True):
    """A message on its way over one channel; due and created are seconds since the epoch."""

    message: Message
    channel: Channel
    created: float
    due: float
    attempts: int = 0
    error: str = ""


class ActionEntry(msgspec.Struct, kw_only=True):
    """An action that was decided.

    Attributes:
        id: the same action for the same window has the same id.
        state: wanted until it was carried out and is in the deployment's history; `skipped` by the cool-down or
            the limit.
        carried_out: it was done, or given up when `failed`; only the history lacks it.
        wanted: when it was decided, seconds since the epoch; `due`: when it is tried next.
        detail: what was done, or why not.
        owner: who carries it out now, where the monitor has no right to; `lent_until`: until when others leave
            it to them.
    """

    id: str
    action: str
    revision: int
    kind: MonitorKind
    reason: str
    wanted: float
    due: float = 0.0
    state: Literal["wanted", "done", "failed", "skipped"] = "wanted"
    attempts: int = 0
    carried_out: bool = False
    failed: bool = False
    detail: str = ""
    owner: str = ""
    lent_until: float = 0.0

    @property
    def open(self) -> bool:
        """Something is still to be done."""
        return self.state == "wanted"


class AlertState(msgspec.Struct, kw_only=True):
    """The whole file.

    Attributes:
        pending: notices that wait for others to be told with; `pending_since`: since when.
        deliveries: messages that no receiver has confirmed yet.
        delivered, failed: messages so far, over all channels.
        actions: the latest decisions, oldest first.
    """

    standings: list[Standing] = []
    pending: list[Notice] = []
    pending_since: float = 0.0
    deliveries: list[Delivery] = []
    delivered: int = 0
    failed: int = 0
    actions: list[ActionEntry] = []

    @property
    def calm(self) -> bool:
        """No problem goes on, and nobody waits to be told."""
        told = all(each.level == each.told == "ok" for each in self.standings)
        return told and not (self.pending or self.deliveries)

    def standing(self, revision: int, kind: MonitorKind, topic: Topic) -> Standing:
        """The standing of a topic, made when it is new."""
        for standing in self.standings:
            if (standing.revision, standing.kind, standing.topic) == (revision, kind, topic):
                return standing
        standing = Standing(revision=revision, kind=kind, topic=topic)
        self.standings.append(standing)
        return standing


def read_state(data: Path) -> AlertState:
    """The state in a deployment's data folder; a new one before the first window.

    Raises:
        DataError: the file is damaged.
    """
    path = data / FOLDER / _STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=AlertState)
    except FileNotFoundError:
        return AlertState()
    except msgspec.DecodeError as error:
        raise DataError(
            f"The state of the alerts in {path} cannot be read",
            why=str(error),
            hint="Remove the file: alerts that go on are then told once more",
        ) from error


def write_state(data: Path, state: AlertState) -> None:
    """Replace the state in one step."""
    write_atomic(data / FOLDER / _STATE, msgspec.json.encode(state))


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Keep other processes from the state."""
    (data / FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(data / FOLDER / _LOCK, wait=True):
        yield


def iso(seconds: float) -> str:
    """Seconds since the epoch as UTC time, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def seconds(text: str) -> float:
    """ISO 8601 time as seconds since the epoch; a time without zone is UTC."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
