"""The journal of a deployment: each change is noted in the record, so that one write decides and tells it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from mlflow_deploy.errors import DeployError
from mlflow_deploy.targets.base_records import ChangeRecord, DeploymentRecord, RevisionRecord

KEPT = 100
"""Changes that a record keeps. A record is a label or an annotation on some targets, where room is scarce."""

_REASON_CHARACTERS = 500

Action = Literal[
    "create", "update", "add", "traffic", "rollback", "delete-revision",
    "notify", "pause-rollout", "retrain",
]  # fmt: skip
Outcome = Literal["started", "done", "rolled_back", "failed"]


def noted(
    record: DeploymentRecord,
    action: Action,
    outcome: Outcome,
    *,
    revision: RevisionRecord | None = None,
    before: Mapping[int, int] | None = None,
    reason: str = "",
    now: str = "",
) -> DeploymentRecord:
    """The record with one more change in its history.

    Args:
        record: as it is after the change.
        before: shares of the traffic before it; None when they have not changed.
        now: UTC time, ISO 8601; empty for this moment.
    """
    change = ChangeRecord(
        number=record.history[-1].number + 1 if record.history else 1,
        at=now or datetime.now(UTC).isoformat(timespec="seconds"),
        by=who(),
        action=action,
        outcome=outcome,
        revision=revision.number if revision else 0,
        model=revision.resolved_uri if revision else "",
        before=dict(record.weights if before is None else before),
        after=dict(record.weights),
        reason=reason[:_REASON_CHARACTERS],
    )
    return msgspec.structs.replace(record, history=(*record.history, change)[-KEPT:])


def why(error: BaseException) -> str:
    """The reason to note for a change that ended with an error."""
    if isinstance(error, DeployError):
        return error.text
    return f"interrupted: {type(error).__name__}: {error}".rstrip(": ")


def who() -> str:
    """Who runs this command."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without an entry, as in containers that run under a random one.
        return f"uid {os.getuid()}"
