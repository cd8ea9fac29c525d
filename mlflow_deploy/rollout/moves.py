"""The moves a rollout is made of. Each is decided by one atomic write of the deployment's record."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.targets.base import DeploymentRecord, RevisionRecord, Target


def bring_up(
    target: Target, record: DeploymentRecord, candidate: RevisionRecord, bundle: Bundle
) -> DeploymentRecord:
    """Start a candidate beside the stable revision and return the record that names it.

    Raises:
        DeployError: it did not become ready. The candidate is gone and the record is as before; a deployment
            without any other revision is left for the caller to remove.
    """
    announced = msgspec.structs.replace(
        record, revisions=(*record.revisions, candidate), candidate=candidate.number
    )
    target.write_record(announced)
    try:
        target.start(announced, candidate, bundle)
    except BaseException:
        if record.revisions:
            target.write_record(record)
        raise
    return announced


def move(
    target: Target,
    record: DeploymentRecord,
    weights: Mapping[int, int],
    bundles: Mapping[int, Bundle],
    *,
    now: str,
) -> DeploymentRecord:
    """Give each revision its share of the traffic for good, and stop those without one.

    Args:
        weights: revision -> percent, adding up to 100; each revision is ready.
        bundles: the bundle of each of them.
    """
    moved = msgspec.structs.replace(
        record,
        phase="ready",
        weights={number: weight for number, weight in weights.items() if weight},
        candidate=0,
        rollout=None,
        updated_at=now,
    )
    before = record.rollout.stable if record.rollout else record.stable.number if record.weights else 0
    if before and before != moved.stable.number:
        earlier = tuple(number for number in record.previous if number != moved.stable.number)
        moved = msgspec.structs.replace(moved, previous=(*earlier, before))
    target.write_record(moved)
    target.apply(moved, bundles)
    return moved


def abandon(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Forget a candidate that a killed command left before it had traffic; the stable revision serves on."""
    kept = tuple(revision for revision in record.revisions if revision.number != record.candidate)
    target.stop(record.name, record.candidate)
    without = msgspec.structs.replace(record, revisions=kept, candidate=0)
    target.write_record(without)
    return without
