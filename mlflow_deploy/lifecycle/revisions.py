"""Single revisions of a deployment: add one without traffic, remove one that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mlflow_deploy.config import check_name, parse_spec
from mlflow_deploy.errors import DeploymentBusy, RevisionInUse, RevisionNotFound
from mlflow_deploy.lifecycle.gateways import keep_address
from mlflow_deploy.lifecycle.records.recorder import recorded
from mlflow_deploy.lifecycle.steps import (
    Progress,
    bundle_of,
    make_revision,
    next_number,
    now,
    settle,
)
from mlflow_deploy.rollout import moves
from mlflow_deploy.rollout.journal import noted
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord


def add(
    target: Target,
    name: str,
    model_uri: str,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    label: str = "",
    base: RevisionRecord | None = None,
    progress: Progress,
) -> tuple[DeploymentRecord, RevisionRecord]:
    """Add a revision that has no traffic yet. It is started to see that it becomes ready, then stopped.

    Args:
        base: revision whose settings hold where none are given; None for the stable one.

    Raises:
        DeployError: nothing was added.
    """
    check_name(name)
    with recorded(target, name):
        record = settle(target, target.require(name))
        spec = keep_address(record, parse_spec(config, flavor=flavor, base=(base or record.stable).settings))
        revision, bundle = make_revision(next_number(record), model_uri, spec, progress, label=label)
        progress(f"Trying revision {revision.number} of {name}")
        record = moves.bring_up(target, record, revision, bundle, action="add")
        bundles = {number: bundle_of(record, number) for number in record.wanted}
        record = moves.move(target, record, record.weights, bundles, now=now(), action="add")
        return record, revision


def delete_revision(target: Target, name: str, number: int) -> DeploymentRecord:
    """Remove a revision that carries no traffic; its bundle stays until `mlflow-deploy prune --bundles`.

    Raises:
        RevisionNotFound: there is none of this number.
        RevisionInUse: it has traffic, or a rollout is moving traffic to or from it.
    """
    check_name(name)
    try:
        with recorded(target, name):
            record = settle(target, target.require(name))
            known = {revision.number: revision for revision in record.revisions}
            if number not in known:
                raise RevisionNotFound(name, number, known)
            if weight := record.weights.get(number):
                raise RevisionInUse(
                    name,
                    number,
                    f"it gets {weight} % of the requests",
                    f"Give them to another revision first, as in `mlflow-deploy traffic {name} OTHER=100`, or "
                    "delete the whole deployment",
                )
            left = msgspec.structs.replace(
                record,
                revisions=tuple(each for each in record.revisions if each.number != number),
                previous=tuple(each for each in record.previous if each != number),
                updated_at=now(),
            )
            left = noted(left, "delete-revision", "done", revision=known[number])
            target.write_record(left)
            target.forget(name, number)
            return left
    except DeploymentBusy as busy:
        found = target.read_record(name)
        if found and found.rollout and number in (found.rollout.stable, found.rollout.candidate):
            raise RevisionInUse(
                name,
                number,
                f"a rollout from revision {found.rollout.stable} to {found.rollout.candidate} goes on",
                f"Wait for its end, or end it with `mlflow-deploy rollout {name} promote` or `abort`",
            ) from busy
        raise
