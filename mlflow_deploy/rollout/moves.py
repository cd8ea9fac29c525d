"""The moves a rollout is made of. Each is decided by one atomic write of the deployment's record."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.rollout.journal import Action, Outcome, noted, why
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord


def bring_up(
    target: Target,
    record: DeploymentRecord,
    candidate: RevisionRecord,
    bundle: Bundle,
    *,
    replicas: int = 0,
    action: Action = "update",
) -> DeploymentRecord:
    """Start a candidate beside the stable revision and return the record that names it.

    Args:
        replicas: how many replicas it begins with; 0 = as its settings say.
        action: what the history calls it.

    Raises:
        DeployError: it did not become ready. The candidate is gone and the record is as before but for its
            history; a deployment without any other revision is left for the caller to remove.
    """
    announced = msgspec.structs.replace(
        record,
        revisions=(*record.revisions, candidate),
        candidate=candidate.number,
        replicas={candidate.number: replicas} if replicas else {},
    )
    if record.revisions:
        announced = noted(announced, action, "started", revision=candidate)
    target.write_record(announced)
    try:
        target.start(announced, candidate, bundle)
    except BaseException as error:
        if record.revisions:
            back = msgspec.structs.replace(record, history=announced.history)
            target.write_record(noted(back, action, "rolled_back", revision=candidate, reason=why(error)))
        raise
    return announced


def move(
    target: Target,
    record: DeploymentRecord,
    weights: Mapping[int, int],
    bundles: Mapping[int, Bundle],
    *,
    now: str,
    replicas: Mapping[int, int] | None = None,
    action: Action = "traffic",
    reason: str = "",
) -> DeploymentRecord:
    """Give each revision its share of the traffic for good, and stop those without one.

    Args:
        weights: revision -> percent, adding up to 100; each revision is ready.
        bundles: the bundle of each of them.
        replicas: how many they have for now, where that is not what their settings say.
        action: what the history calls it; the end of a rollout is always that of an update.
        reason: why; the end of a rollout has its own.
    """
    moved = msgspec.structs.replace(
        record,
        phase="ready",
        weights={number: weight for number, weight in weights.items() if weight},
        mirror={},
        replicas=dict(replicas or {}),
        candidate=0,
        rollout=None,
        updated_at=now,
    )
    before = record.rollout.stable if record.rollout else record.stable.number if record.weights else 0
    if before and before != moved.stable.number:
        earlier = tuple(number for number in record.previous if number != moved.stable.number)
        moved = msgspec.structs.replace(moved, previous=(*earlier, before))
    moved = _told(record, moved, action, now, reason)
    target.write_record(moved)
    target.apply(moved, bundles)
    return moved


def put_back(
    target: Target, record: DeploymentRecord, bundles: Mapping[int, Bundle], action: Action, reason: str
) -> DeploymentRecord:
    """Undo a move that the target refused half way: the traffic is again as in the record from before it.

    Args:
        record: as it was before the move; a candidate in it stays known and is stopped.
        bundles: of the revisions that have traffic in it.
        action: what the history calls the move.
    """
    about = record.revision(record.candidate) if record.candidate else None
    back = msgspec.structs.replace(record, candidate=0)
    back = noted(back, action, "rolled_back", revision=about, reason=reason)
    target.write_record(back)
    target.apply(back, bundles)
    return back


def fill_up(target: Target, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> DeploymentRecord:
    """Start the replicas that revisions lack since a rolling update was taken back."""
    if not record.replicas:
        return record
    whole = msgspec.structs.replace(record, replicas={})
    target.write_record(whole)
    target.apply(whole, bundles)
    return whole


def abandon(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Forget a candidate that a killed command left before it had traffic; the stable revision serves on."""
    kept = tuple(revision for revision in record.revisions if revision.number != record.candidate)
    target.stop(record.name, record.candidate)
    without = msgspec.structs.replace(record, revisions=kept, candidate=0, replicas={})
    begun = record.history[-1].action if record.history else "update"
    left, reason = record.revision(record.candidate), "the command that ran it was killed"
    without = noted(without, begun, "rolled_back", revision=left, reason=reason)
    target.write_record(without)
    return without


def _told(
    before: DeploymentRecord, after: DeploymentRecord, action: Action, now: str, reason: str
) -> DeploymentRecord:
    """The record after a move with a note of it in its history."""
    outcome: Outcome = "done"
    about = after.stable if len(after.weights) == 1 else None
    weights = before.weights
    if before.rollout and after.last_rollout:
        action, about = "update", after.revision(before.rollout.candidate)
        weights = {before.rollout.stable: 100}
        outcome = "done" if after.last_rollout.outcome == "promoted" else "rolled_back"
        reason = after.last_rollout.events[-1].reason if after.last_rollout.events else ""
    elif before.candidate:
        about = after.revision(before.candidate)
    return noted(after, action, outcome, revision=about, before=weights, reason=reason, now=now)
