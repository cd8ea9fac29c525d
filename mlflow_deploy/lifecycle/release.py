"""The flow of one model version, top to bottom: resolve, convert, bundle, start, move traffic, record.

Plugin, command line and controller all call these functions, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import DeploymentSpec, check_name, parse_spec
from mlflow_deploy.errors import (
    BundleError,
    ConfigError,
    ConversionError,
    DeployError,
    DeploymentBusy,
    DeploymentExists,
    NoRollout,
    NothingToRollBack,
    RevisionNotFound,
    StateWriteFailed,
)
from mlflow_deploy.lifecycle.gateways import choose_gateway, keep_address
from mlflow_deploy.lifecycle.history import last_update, rolled_back
from mlflow_deploy.lifecycle.label_source import label_source
from mlflow_deploy.lifecycle.monitors import attached
from mlflow_deploy.lifecycle.quarantine_marks import in_quarantine, marks, refuse_marked
from mlflow_deploy.lifecycle.records.recorder import recorded
from mlflow_deploy.lifecycle.registry import resolve
from mlflow_deploy.lifecycle.steps import (
    Progress,
    bundle_of,
    make_bundle,
    make_revision,
    next_number,
    now,
    settle,
)
from mlflow_deploy.rollout import machine, moves
from mlflow_deploy.rollout.journal import Action, noted
from mlflow_deploy.rollout.strategies import check_strategy, first_replicas, steps_of
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord


def create(
    target: Target,
    name: str,
    model_uri: str,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    label: str = "",
    evidence: Mapping[str, Any] | None = None,
    checked: Bundle | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Deploy a model version under a new name and return its description when it answers.

    Args:
        label: name of the revision within the deployment.
        evidence: what speaks for it, such as the report of the gates; the release record keeps it.
        checked: the bundle that the gates have checked, which is deployed then; None to make it.

    Raises:
        DeployError: nothing was deployed and nothing was left behind.
    """
    check_name(name)
    spec, note = choose_gateway(target, name, parse_spec(config, flavor=flavor), progress)
    with recorded(target, name) as recorder:
        if target.read_record(name) is not None:
            raise DeploymentExists(name, target.name)
        try:
            port = target.reserve_address(name, spec.host, spec.port)
            revision, bundle = make_revision(1, model_uri, spec, progress, label=label, checked=checked)
            recorder.intend("create", revision=revision, evidence=evidence)
            record = DeploymentRecord(
                name=name,
                phase="creating",
                host=spec.host,
                port=port,
                gateway=spec.gateway,
                gateway_note=note,
                revisions=(),
                weights={},
                created_at=revision.created_at,
                updated_at=revision.created_at,
            )
            progress(f"Starting revision 1 of {name}")
            record = moves.bring_up(target, record, revision, bundle)
            record = moves.move(target, record, {1: 100}, {1: bundle}, now=now(), action="create")
        except BaseException:
            target.remove(name)
            raise
        described = describe(target, record)
    return {**described, "release": recorder.summary}


def update(
    target: Target,
    name: str,
    model_uri: str | None = None,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    label: str = "",
    evidence: Mapping[str, Any] | None = None,
    checked: Bundle | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Replace what a deployment serves. The old revision serves until the new one is ready.

    Settings that are not given keep the values of the stable revision; so does the model.

    Args:
        label: name of the new revision within the deployment.
        evidence: what speaks for it, such as the report of the gates; the release record keeps it.
        checked: the bundle that the gates have checked, which is deployed then; None to make it.

    Raises:
        DeployError: the old revision serves on, as before.
    """
    check_name(name)
    with recorded(target, name) as recorder:
        record = settle(target, target.require(name))
        stable = record.stable
        spec = parse_spec(config, flavor=flavor, base=DeploymentSpec.model_validate(stable.spec))
        spec = keep_address(record, spec)
        check_strategy(target, record, spec)
        number = next_number(record)
        uri = model_uri or stable.resolved_uri
        try:
            revision, bundle = make_revision(number, uri, spec, progress, label=label, checked=checked)
        except (ConversionError, BundleError) as error:
            target.write_record(noted(record, "update", "rolled_back", reason=error.text))
            raise
        if (revision.bundle, revision.settings, label) == (stable.bundle, stable.settings, stable.label):
            progress(f"Revision {stable.number} already serves exactly this")
            return describe(target, record)
        recorder.intend("update", revision=revision, evidence=evidence)
        progress(f"Starting revision {number} of {name} beside revision {stable.number}")
        record = moves.bring_up(target, record, revision, bundle, replicas=first_replicas(spec))
        if steps_of(spec):
            bundles = {number: bundle, stable.number: bundle_of(record, stable.number)}
            labels = label_source(target, record, spec, progress)
            record = machine.run(target, record, spec, bundles, now=now, progress=progress, labels=labels)
        else:
            progress(f"Moving the traffic to revision {number}")
            record = _moved(target, record, {number: 100}, {number: bundle}, "update")
        described = describe(target, record)
    return {**described, "release": recorder.summary}


def set_traffic(
    target: Target,
    name: str,
    weights: Mapping[int, int],
    *,
    action: Action = "traffic",
    reason: str = "",
    progress: Progress,
) -> dict[str, Any]:
    """Share the traffic of a deployment among its revisions; those that do not run are started first.

    Args:
        weights: revision -> percent, adding up to 100.
        action: what the history calls it.
        reason: why; the history and the release record keep it.

    Raises:
        Quarantined: a revision that shall get traffic is in quarantine.
        DeployError: the traffic is as before.
    """
    check_name(name)
    if any(weight < 0 for weight in weights.values()) or sum(weights.values()) != 100:
        shares = ", ".join(f"{number}={weight}" for number, weight in weights.items()) or "none"
        raise ConfigError("The shares must be 0 or more and add up to 100", why=f"they are {shares}")
    with recorded(target, name) as recorder:
        record = settle(target, target.require(name))
        known = [revision.number for revision in record.revisions]
        for number in weights:
            if number not in known:
                raise RevisionNotFound(name, number, known)
        wanted = [number for number, weight in weights.items() if weight]
        target.check_split(record, weights)
        refuse_marked(target, record, wanted)
        bundles = {number: bundle_of(record, number) for number in wanted}
        started = []
        try:
            for number in wanted:
                if target.status(record, number).state == "stopped":
                    progress(f"Starting revision {number} of {name}")
                    started.append(number)
                    target.start(record, record.revision(number), bundles[number])
            progress(f"Moving the traffic of {name}")
            record = _moved(target, record, weights, bundles, action, reason)
        except BaseException:
            for number in started:
                if not record.weights.get(number):
                    target.stop(name, number)
            raise
        described = describe(target, record)
    return {**described, "release": recorder.summary}


def _moved(
    target: Target,
    record: DeploymentRecord,
    weights: Mapping[int, int],
    bundles: Mapping[int, Bundle],
    action: Action,
    reason: str = "",
) -> DeploymentRecord:
    """Move the traffic for good; when the target refuses half way, everything is as before."""
    try:
        return moves.move(target, record, weights, bundles, now=now(), action=action, reason=reason)
    except DeployError as error:
        before = {number: bundle_of(record, number) for number in record.wanted}
        try:
            moves.put_back(target, record, before, action, error.text)
        except DeployError as second:
            # The record says what shall be; the next command goes on from there.
            raise error from second
        raise


def rollback(target: Target, name: str, to: int | None = None, *, progress: Progress) -> dict[str, Any]:
    """Give all traffic back to an earlier revision. Needs no tracking server: bundles are kept.

    Args:
        to: the revision; None for the one that was stable before, those in quarantine left out.

    Raises:
        NothingToRollBack: no other revision was stable before.
        DeployError: the traffic is as before.
    """
    record = target.require(check_name(name))
    if to is None:
        known = marks(target, name)
        former = [each for each in record.previous if not in_quarantine(record.revision(each), known)]
        if not former:
            raise NothingToRollBack(name)
        to = former[-1]
    return set_traffic(target, name, {to: 100}, action="rollback", progress=progress)


def steer(target: Target, name: str, word: str) -> None:
    """Say a word to the rollout that another command runs.

    Args:
        word: pause, resume, promote or abort.

    Raises:
        NoRollout: none goes on.
    """
    record = target.require(check_name(name))
    if record.rollout is None:
        raise NoRollout(name)
    target.set_control(name, word)


def delete(target: Target, name: str) -> None:
    """Drain and remove a deployment; does nothing when there is none. Its release records stay."""
    check_name(name)
    with recorded(target, name, at_any_rate=True) as recorder:
        try:
            record = target.read_record(name)
            if record is not None:
                recorder.intend("delete", revision=record.stable)
        except StateWriteFailed as error:
            recorder.give_up(error)
        target.remove(name)


def prepare(model_uri: str, spec: DeploymentSpec, progress: Progress) -> Bundle:
    """Resolve and convert a model and write its bundle, without deploying it."""
    progress(f"Looking up {model_uri}")
    bundle, _ = make_bundle(resolve(model_uri), spec, progress)
    return bundle


def describe(target: Target, record: DeploymentRecord) -> dict[str, Any]:
    """What `get`, `create` and `update` answer: plain values that can be printed and written as JSON."""
    stable = record.stable
    status = target.status(record, stable.number)
    return {
        "name": record.name,
        "flavor": stable.format,
        "target": target.name,
        "url": target.url(record),
        "grpc": target.grpc_address(record),
        "gateway": record.gateway,
        "traffic": {str(number): weight for number, weight in sorted(record.weights.items()) if weight},
        "status": status.state,
        "detail": "; ".join(part for part in (status.detail, rolled_back(record)) if part),
        "last_update": last_update(record),
        "revision": stable.number,
        "model_uri": stable.model_uri,
        "resolved_uri": stable.resolved_uri,
        "model_name": stable.model_name,
        "model_version": stable.model_version,
        "format": stable.format,
        "fallback": stable.fallback,
        "parity": stable.parity,
        "notes": [*stable.notes, *filter(None, [record.gateway_note])],
        "bundle": stable.bundle,
        "monitors": attached(target, record),
        "rollout": msgspec.to_builtins(record.rollout or record.last_rollout),
        "revisions": [
            {
                "revision": revision.number,
                "name": revision.label or str(revision.number),
                "status": (status if revision is stable else target.status(record, revision.number)).state,
                "traffic": record.weights.get(revision.number, 0),
                "model_uri": revision.resolved_uri,
                "format": revision.format,
                "created_at": revision.created_at,
            }
            for revision in record.revisions
        ],
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }


def reconcile(target: Target, progress: Progress) -> list[dict[str, Any]]:
    """Finish or undo what killed commands left, start what should run, and describe every deployment.

    Deployments that another command is working on are left to it.
    """
    described = []
    for name in target.names():
        try:
            with recorded(target, name):
                record = target.read_record(name)
                if record is None:
                    continue
                progress(f"Checking {name}")
                described.append(describe(target, settle(target, record)))
        except DeploymentBusy as busy:
            progress(busy.text)
    return described
