"""Quarantine: a version is marked, its deployments go back to their last good revision, and it stays out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec

from mlflow_deploy.errors import ConfigError, DeployError, DeploymentBusy, RegistryUnreachable
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.quarantine_marks import TAG, in_quarantine, mark, marks
from mlflow_deploy.lifecycle.records.recorder import recorded
from mlflow_deploy.lifecycle.registry import resolve, tag_version
from mlflow_deploy.lifecycle.steps import Progress, bundle_of, now, settle
from mlflow_deploy.rollout.journal import who
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord

_BUSY_SECONDS = 60.0
_POLL_SECONDS = 0.25

_Answer = TypeVar("_Answer")


class Affected(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a deployment of the version.

    Attributes:
        outcome: `moved` back; `unaffected`, because the version had no traffic; `stuck`, it serves on.
        revision: that has the traffic now.
        what: one sentence.
    """

    deployment: str
    target: str
    outcome: Literal["moved", "unaffected", "stuck"]
    revision: int
    what: str


class QuarantineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a quarantine did.

    Attributes:
        registry: why the version could not be marked in the registry; empty when it was.
        affected: every deployment that has a revision of the version.
        silent: targets that did not answer, one line each.
    """

    model: str
    version: str
    reason: str
    registry: str
    affected: tuple[Affected, ...]
    silent: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the version is marked, serves nowhere, and every target was asked."""
        stuck = any(each.outcome == "stuck" for each in self.affected)
        return not (self.registry or self.silent or stuck)


def quarantine(
    targets: Sequence[Target], model: str, version: str, reason: str, *, progress: Progress
) -> QuarantineReport:
    """Mark a version and take it out of every deployment; may be repeated.

    The deployments go back even when the registry does not answer, which is then reported.

    Raises:
        ConfigError: no reason was given.
        ModelNotFound: the registry has no such version.
    """
    if not reason.strip():
        raise ConfigError(
            "A quarantine needs a reason", hint="Give --reason TEXT; it stands on the version's page"
        )
    registry = ""
    try:
        resolve(f"models:/{model}/{version}")
        stamp = {
            TAG: reason,
            f"{TAG}.by": who(),
            f"{TAG}.at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        tag_version(model, version, stamp)
    except RegistryUnreachable as error:
        registry = error.text
    affected, silent = [], []
    for target in targets:
        try:
            records = target.records()
        except DeployError as error:
            silent.append(f"{target.name}: {error.text}")
            continue
        for record in records:
            if _bad(record, model, version):
                progress(f"Looking at {record.name} on {target.name}")
                affected.append(_take_out(target, record.name, model, version, reason, progress))
    return QuarantineReport(
        model=model,
        version=version,
        reason=reason,
        registry=registry,
        affected=tuple(affected),
        silent=tuple(silent),
    )


def lift(targets: Sequence[Target], model: str, version: str) -> list[str]:
    """Take a quarantine back. Deployments stay as they are.

    Returns:
        Names of the deployments that may serve the version again.

    Raises:
        ModelNotFound: the registry has no such version.
        DeployError: the registry or a target does not answer; the version stays in quarantine.
    """
    resolve(f"models:/{model}/{version}")
    key, found = f"{model}/{version}", []
    for target in targets:
        for name in target.archive_names():
            if key in marks(target, name):
                with target.lock(name):
                    mark(target, name, key, None)
                found.append(name)
    # Last, so that a version whose quarantine was lifted in part is still refused.
    tag_version(model, version, dict.fromkeys((TAG, f"{TAG}.by", f"{TAG}.at")))
    return found


def _bad(record: DeploymentRecord, model: str, version: str) -> set[int]:
    """Revisions of the version."""
    wanted = (model, version)
    return {each.number for each in record.revisions if (each.model_name, each.model_version) == wanted}


def _take_out(
    target: Target, name: str, model: str, version: str, reason: str, progress: Progress
) -> Affected:
    """Mark a deployment's revisions of the version and give their traffic to the last good one."""
    try:
        record = _held(target, name, lambda: _marked(target, name, f"{model}/{version}", reason), progress)
        bad = _bad(record, model, version)
        serving = bad & {*record.weights, *record.mirror}
        good = _good(target, record)
        if not serving:
            _forget(target, name, bad)
            what = f"the version has no traffic; revision {record.stable.number} serves on"
            return _affected(target, name, "unaffected", record.stable.number, what)
        if not good:
            what = (
                "no other revision has served before, so the version serves on; update it with another "
                f"version, or remove it with `mlflow deployments delete -t {target.name} --name {name}`"
            )
            return _affected(target, name, "stuck", record.stable.number, what)
        progress(f"Giving the traffic of {name} to revision {good}")
        why = f"model version {model}/{version} is in quarantine: {reason}"
        _held(
            target,
            name,
            lambda: release.set_traffic(
                target, name, {good: 100}, action="rollback", reason=why, progress=progress
            ),
            progress,
        )
        _forget(target, name, bad)
        what = f"revision {good} has all requests, {record.revision(good).resolved_uri}"
        return _affected(target, name, "moved", good, what)
    except DeployError as error:
        return _affected(target, name, "stuck", 0, error.text)


def _affected(
    target: Target, name: str, outcome: Literal["moved", "unaffected", "stuck"], revision: int, what: str
) -> Affected:
    return Affected(deployment=name, target=target.name, outcome=outcome, revision=revision, what=what)


def _held(target: Target, name: str, act: Callable[[], _Answer], progress: Progress) -> _Answer:
    """Do something that needs a deployment's lock; a rollout that holds it is aborted.

    Raises:
        DeploymentBusy: it is not free within a minute.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return act()
        except DeploymentBusy:
            if time.monotonic() > deadline:
                raise
            found = target.read_record(name)
            if found and found.rollout and target.control(name) != "abort":
                progress(f"Aborting the rollout of {name}")
                target.set_control(name, "abort")
            time.sleep(_POLL_SECONDS)


def _marked(target: Target, name: str, key: str, reason: str) -> DeploymentRecord:
    """Mark a deployment and end what killed commands left; returns its record."""
    with recorded(target, name):
        record = settle(target, target.require(name))
        mark(target, name, key, reason)
        return record


def _good(target: Target, record: DeploymentRecord) -> int:
    """The last good revision: the largest one with traffic that is not marked, else the last stable one."""
    known = marks(target, record.name)
    fine = {each.number for each in record.revisions if not in_quarantine(each, known)}
    with_traffic = sorted(fine & record.weights.keys(), key=lambda number: record.weights[number])
    former = [number for number in record.previous if number in fine]
    return next(iter([*with_traffic[::-1], *former[::-1]]), 0)


def _forget(target: Target, name: str, bad: set[int]) -> None:
    """Stop former revisions of the version that are kept running, so that no header reaches them either."""
    with recorded(target, name):
        record = target.require(name)
        if bad & {*record.previous}:
            left = tuple(number for number in record.previous if number not in bad)
            record = msgspec.structs.replace(record, previous=left, updated_at=now())
            target.write_record(record)
            target.apply(record, {number: bundle_of(record, number) for number in record.wanted})
