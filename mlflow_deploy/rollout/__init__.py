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


def promote(
    target: Target, record: DeploymentRecord, bundles: Mapping[int, Bundle], *, now: str
) -> DeploymentRecord:
    """Give the candidate all traffic and stop the others (strategy `recreate`)."""
    promoted = msgspec.structs.replace(
        record, phase="ready", weights={record.candidate: 100}, candidate=0, updated_at=now
    )
    target.write_record(promoted)
    target.apply(promoted, bundles)
    return promoted


def abandon(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Forget a candidate that a killed command left; the stable revision keeps serving."""
    kept = tuple(revision for revision in record.revisions if revision.number != record.candidate)
    target.stop(record.name, record.candidate)
    without = msgspec.structs.replace(record, revisions=kept, candidate=0)
    target.write_record(without)
    return without
