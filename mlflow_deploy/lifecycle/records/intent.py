"""Intents: what a command is about to do, written before it is begun, for the record after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import ChangeRecord, RevisionRecord

INTENTS = "intents"


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What a command is about to do.

    Attributes:
        action: create, update or delete.
        at: UTC time, ISO 8601.
        by: who ran the command.
        life: `created_at` of the deployment; empty for one that shall be made.
        after: number of the last change in the deployment's history before it.
        revision: that shall come, or the stable one of a deployment that shall go.
        weights: shares of the traffic before it.
        evidence: what came along with the request.
    """

    action: str
    at: str
    by: str
    life: str = ""
    after: int = 0
    revision: RevisionRecord | None = None
    weights: dict[int, int] = {}
    evidence: dict[str, Any] = {}


def intents_of(target: Target, name: str) -> list[Intent]:
    """The intents that no finished command has taken back.

    Raises:
        StateWriteFailed: they cannot be read.
    """
    found = target.read_archive(name, INTENTS).get(INTENTS)
    try:
        return msgspec.json.decode(found, type=list[Intent]) if found else []
    except msgspec.DecodeError as error:
        raise StateWriteFailed(f"the intents of {name}", f"they cannot be read: {error}") from error


def write_intents(target: Target, name: str, intents: Sequence[Intent]) -> None:
    """Replace the intents."""
    target.write_archive(name, INTENTS, msgspec.json.encode(intents))


def intent_of(
    intents: Sequence[Intent], life: str, change: ChangeRecord, started: ChangeRecord | None
) -> Intent | None:
    """The intent that a change came from, None for one that needed none.

    Args:
        life: `created_at` of the deployment.
        started: the announcement of the change, None where there was none.
    """
    first = started.number if started else change.number
    wanted = "" if change.action == "create" else life
    fitting = [
        each
        for each in intents
        if each.action == change.action and each.life == wanted and each.after < first
    ]
    return max(fitting, key=lambda each: each.after, default=None)
