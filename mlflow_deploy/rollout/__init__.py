"""Rollouts: how traffic moves from the stable revision to a candidate, in steps that survive a kill.

The decision is always one atomic write of the deployment's record; what runs is brought in line after it.
"""

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
    """Give each revision its share of the traffic and stop those without one.

    Args:
        weights: revision -> percent, adding up to 100; each revision is ready.
        bundles: the bundle of each of them.
    """
    moved = msgspec.structs.replace(
        record, phase="ready", weights={n: w for n, w in weights.items() if w}, candidate=0, updated_at=now
    )
    if record.weights and record.stable.number != moved.stable.number:
        before = tuple(number for number in record.previous if number != moved.stable.number)
        moved = msgspec.structs.replace(moved, previous=(*before, record.stable.number))
    target.write_record(moved)
    target.apply(moved, bundles)
    return moved


def abandon(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Forget a candidate that a killed command left; the stable revision keeps serving."""
    kept = tuple(revision for revision in record.revisions if revision.number != record.candidate)
    target.stop(record.name, record.candidate)
    without = msgspec.structs.replace(record, revisions=kept, candidate=0)
    target.write_record(without)
    return without
