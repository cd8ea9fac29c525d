"""The history of a deployment or a registered model: who changed what, when, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mlflow_deploy.config import check_name
from mlflow_deploy.errors import DeployError
from mlflow_deploy.lifecycle.records.chain import read_chain
from mlflow_deploy.lifecycle.records.moves_of_model import moves_of
from mlflow_deploy.lifecycle.records.record import ReleaseRecord
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import ChangeRecord, DeploymentRecord


def history(target: Target, name: str) -> list[dict[str, Any]]:
    """The latest changes of a deployment as plain values, the oldest first.

    Raises:
        DeploymentNotFound: there is none; its release records may still be there.
    """
    return [msgspec.to_builtins(change) for change in target.require(check_name(name)).history]


def whole_history(target: Target, name: str) -> list[dict[str, Any]]:
    """All changes under a name, the oldest first: those of deployments that are gone, and of the present one.

    A change that has a release record says so with its number (`record`) and who had approved it.

    Raises:
        StateWriteFailed: a release record cannot be read.
    """
    live = target.read_record(check_name(name))
    journal = live.history if live and live.phase == "ready" else ()
    life = live.created_at if live and journal else ""
    records = read_chain(target, name)
    known = {each.change: each for each in records if each.life == life and each.change}
    first = journal[0].number if journal else 0
    earlier = [
        each for each in records if not (each.life == life and each.change >= first > 0 and each.change)
    ]
    rows = [_row_of(each) for each in earlier]
    for change in journal:
        record = known.get(change.number)
        more = {"record": record.number, "approvers": list(record.approvers)} if record else {}
        rows.append({**msgspec.to_builtins(change), "record": None, "approvers": [], **more})
    return rows


def model_history(targets: Sequence[Target], model: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What happened to a registered model, by time: its versions, stages, aliases, and its deployments.

    Returns:
        The events as plain values (kind, at, by, what, before, after, where, outcome, reason, not_before), and
        one line for each target or registry that did not answer.

    Raises:
        ModelNotFound: there is no registered model of this name, and no deployment of it is known.
    """
    rows: list[dict[str, Any]] = []
    silent = []
    for target in targets:
        try:
            for name in target.archive_names():
                rows += [_event(each) for each in read_chain(target, name) if each.model.name == model]
        except DeployError as error:
            silent.append(f"{target.name}: {error.text}")
    try:
        rows += [
            {"where": "registry", "outcome": "", **msgspec.to_builtins(each)} for each in moves_of(model)
        ]
    except DeployError as error:
        if not rows:
            raise
        silent.append(f"registry: {error.text}")
    return sorted(rows, key=lambda each: str(each["at"])), silent


def _event(record: ReleaseRecord) -> dict[str, Any]:
    return {
        "kind": record.action,
        "at": record.at,
        "by": record.requester,
        "what": record.model.version,
        "before": _shares(record.before),
        "after": _shares(record.after),
        "where": f"{record.deployment} on {record.target}",
        "outcome": record.outcome,
        "reason": record.reason,
        "not_before": "",
    }


def _shares(weights: dict[int, int]) -> str:
    return " ".join(f"{number}={share}" for number, share in sorted(weights.items()))


def _row_of(record: ReleaseRecord) -> dict[str, Any]:
    """A release record in the words of a change of the history."""
    return {
        "number": record.change,
        "at": record.at,
        "by": record.requester,
        "action": record.action,
        "outcome": record.outcome,
        "revision": record.revision,
        "model": record.model.uri,
        "before": msgspec.to_builtins(record.before),
        "after": msgspec.to_builtins(record.after),
        "reason": record.reason,
        "record": record.number,
        "approvers": list(record.approvers),
    }


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
