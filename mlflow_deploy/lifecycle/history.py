"""The history of a deployment: who changed what, when, and how it ended."""

from __future__ import annotations

from typing import Any

import msgspec

from mlflow_deploy.config import check_name
from mlflow_deploy.targets.base import ChangeRecord, DeploymentRecord, Target


def history(target: Target, name: str) -> list[dict[str, Any]]:
    """The latest changes of a deployment as plain values, the oldest first.

    Raises:
        DeploymentNotFound: there is none; the history goes with the deployment.
    """
    return [msgspec.to_builtins(change) for change in target.require(check_name(name)).history]


def last_update(record: DeploymentRecord) -> str:
    """How the last update stands: `started`, `done` or `rolled_back`; an empty string before the first."""
    changes = [change for change in record.history if change.action == "update"]
    return changes[-1].outcome if changes else ""


def rolled_back(record: DeploymentRecord) -> str:
    """What became of the last change when it was taken back, or an empty string."""
    last = record.history[-1] if record.history else None
    if last is None or last.outcome != "rolled_back":
        return ""
    return f"rolled_back: {_what(last)}: {last.reason}"


def _what(change: ChangeRecord) -> str:
    if not change.revision:
        return "the update"
    return f"the {change.action} to revision {change.revision} ({change.model})"
