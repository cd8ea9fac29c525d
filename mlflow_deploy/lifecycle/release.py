"""The flow of one model version, top to bottom: resolve, convert, bundle, start, move traffic, record.

Plugin, command line and controller all call these functions, so that they cannot differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlflow_deploy.bundle import Bundle, read_bundle, write_bundle
from mlflow_deploy.config import DeploymentSpec, check_name, parse_spec, state_home
from mlflow_deploy.errors import (
    ConfigError,
    DeploymentBusy,
    DeploymentExists,
    NoRollout,
    NothingToRollBack,
    RevisionNotFound,
    Unsupported,
)
from mlflow_deploy.lifecycle.registry import ResolvedModel, fetch, resolve
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.rollout import machine, moves
from mlflow_deploy.rollout.strategies import check_strategy, steps_of
from mlflow_deploy.targets.base import DeploymentRecord, RevisionRecord, Target

if TYPE_CHECKING:
    from mlflow_deploy.conversion import Tolerance
    from mlflow_deploy.conversion.validation import Validation

Progress = Callable[[str], None]
"""Takes one line on what is being done now."""


def create(
    target: Target,
    name: str,
    model_uri: str,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Deploy a model version under a new name and return its description when it answers.

    Raises:
        DeployError: nothing was deployed and nothing was left behind.
    """
    check_name(name)
    spec = parse_spec(config, flavor=flavor)
    with target.lock(name):
        _clear(target, name)
        if target.read_record(name) is not None:
            raise DeploymentExists(name, target.name)
        try:
            port = target.reserve_address(name, spec.host, spec.port)
            revision, bundle = _make_revision(1, model_uri, spec, progress)
            record = DeploymentRecord(
                name=name,
                phase="creating",
                host=spec.host,
                port=port,
                gateway=spec.gateway,
                revisions=(),
                weights={},
                created_at=revision.created_at,
                updated_at=revision.created_at,
            )
            progress(f"Starting revision 1 of {name}")
            record = moves.bring_up(target, record, revision, bundle)
            record = moves.move(target, record, {1: 100}, {1: bundle}, now=_now())
        except BaseException:
            target.remove(name)
            raise
        return describe(target, record)


def update(
    target: Target,
    name: str,
    model_uri: str | None = None,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Replace what a deployment serves. The old revision serves until the new one is ready.

    Settings that are not given keep the values of the stable revision; so does the model.

    Raises:
        DeployError: the old revision serves on, as before.
    """
    check_name(name)
    with target.lock(name):
        _clear(target, name)
        record = _settle(target, target.require(name))
        stable = record.stable
        spec = parse_spec(config, flavor=flavor, base=DeploymentSpec.model_validate(stable.spec))
        if (spec.host, spec.port, spec.gateway) != (
            record.host,
            spec.port and record.port,
            record.gateway,
        ):
            raise ConfigError(
                f"The address and the gateway of deployment {name!r} cannot be changed",
                why=f"they are {record.host}:{record.port} and gateway={record.gateway} for its whole life",
                hint="Delete the deployment and create it anew",
            )
        check_strategy(target, record, spec)
        number = max(revision.number for revision in record.revisions) + 1
        revision, bundle = _make_revision(number, model_uri or stable.resolved_uri, spec, progress)
        if (revision.bundle, revision.spec) == (stable.bundle, stable.spec):
            progress(f"Revision {stable.number} already serves exactly this")
            return describe(target, record)
        progress(f"Starting revision {number} of {name} beside revision {stable.number}")
        record = moves.bring_up(target, record, revision, bundle)
        if steps_of(spec):
            bundles = {number: bundle, stable.number: _bundle(record, stable.number)}
            record = machine.run(target, record, spec, bundles, now=_now, progress=progress)
        else:
            progress(f"Moving the traffic to revision {number}")
            record = moves.move(target, record, {number: 100}, {number: bundle}, now=_now())
        return describe(target, record)


def set_traffic(
    target: Target, name: str, weights: Mapping[int, int], *, progress: Progress
) -> dict[str, Any]:
    """Share the traffic of a deployment among its revisions; those that do not run are started first.

    Args:
        weights: revision -> percent, adding up to 100.

    Raises:
        DeployError: the traffic is as before.
    """
    check_name(name)
    if any(weight < 0 for weight in weights.values()) or sum(weights.values()) != 100:
        shares = ", ".join(f"{number}={weight}" for number, weight in weights.items()) or "none"
        raise ConfigError("The shares must be 0 or more and add up to 100", why=f"they are {shares}")
    with target.lock(name):
        _clear(target, name)
        record = _settle(target, target.require(name))
        known = [revision.number for revision in record.revisions]
        for number in weights:
            if number not in known:
                raise RevisionNotFound(name, number, known)
        wanted = [number for number, weight in weights.items() if weight]
        if len(wanted) > 1 and not target.can_split(record):
            raise Unsupported(
                target.name,
                "sharing traffic between revisions of a deployment without gateway",
                "Create the deployment with -C gateway=envoy, or give one revision 100 %",
            )
        bundles = {number: _bundle(record, number) for number in wanted}
        started = []
        try:
            for number in wanted:
                if target.status(record, number).state == "stopped":
                    progress(f"Starting revision {number} of {name}")
                    started.append(number)
                    target.start(record, record.revision(number), bundles[number])
            progress(f"Moving the traffic of {name}")
            record = moves.move(target, record, weights, bundles, now=_now())
        except BaseException:
            for number in started:
                if not record.weights.get(number):
                    target.stop(name, number)
            raise
        return describe(target, record)


def rollback(target: Target, name: str, to: int | None = None, *, progress: Progress) -> dict[str, Any]:
    """Give all traffic back to an earlier revision. Needs no tracking server: bundles are kept.

    Args:
        to: the revision; None for the one that was stable before.

    Raises:
        NothingToRollBack: no other revision was stable before.
        DeployError: the traffic is as before.
    """
    record = target.require(check_name(name))
    if to is None:
        if not record.previous:
            raise NothingToRollBack(name)
        to = record.previous[-1]
    return set_traffic(target, name, {to: 100}, progress=progress)


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
    """Drain and remove a deployment; does nothing when there is none."""
    check_name(name)
    with target.lock(name):
        target.remove(name)


def prepare(model_uri: str, spec: DeploymentSpec, progress: Progress) -> Bundle:
    """Resolve and convert a model and write its bundle, without deploying it."""
    progress(f"Looking up {model_uri}")
    bundle, _ = _make_bundle(resolve(model_uri), spec, progress)
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
        "detail": status.detail,
        "revision": stable.number,
        "model_uri": stable.model_uri,
        "resolved_uri": stable.resolved_uri,
        "model_name": stable.model_name,
        "model_version": stable.model_version,
        "format": stable.format,
        "fallback": stable.fallback,
        "parity": stable.parity,
        "notes": list(stable.notes),
        "bundle": stable.bundle,
        "rollout": msgspec.to_builtins(record.rollout or record.last_rollout),
        "revisions": [
            {
                "revision": revision.number,
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
            with target.lock(name):
                _clear(target, name)
                record = target.read_record(name)
                if record is None:
                    continue
                progress(f"Checking {name}")
                described.append(describe(target, _settle(target, record)))
        except DeploymentBusy as busy:
            progress(busy.text)
    return described


# --- steps -------------------------------------------------------------------------------------------------


def _make_revision(
    number: int, model_uri: str, spec: DeploymentSpec, progress: Progress
) -> tuple[RevisionRecord, Bundle]:
    progress(f"Looking up {model_uri}")
    model = resolve(model_uri)
    bundle, parity = _make_bundle(model, spec, progress)
    return RevisionRecord(
        number=number,
        bundle=bundle.digest,
        format=bundle.manifest.format,
        model_uri=model_uri,
        resolved_uri=model.uri,
        model_name=model.name,
        model_version=model.version,
        fallback=bundle.manifest.fallback,
        parity=parity,
        notes=bundle.manifest.notes,
        spec=spec.model_dump(mode="json"),
        created_at=_now(),
    ), bundle


def _make_bundle(model: ResolvedModel, spec: DeploymentSpec, progress: Progress) -> tuple[Bundle, str]:
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.validation import from_path, from_run

    with mlflow_is_quiet(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        download, converted = Path(work) / "model", Path(work) / "servable"
        download.mkdir()
        converted.mkdir()
        progress(f"Fetching {model.uri}")
        folder, source = fetch(model, download)
        validation: Validation | None = None
        if spec.parity.data:
            validation = from_path(spec.parity.data)
        elif source.run_id:
            progress("Fetching the validation rows of its run")
            validation = from_run(source.run_id)
        conversion = make_servable(
            folder,
            converted,
            format=spec.format,
            validation=validation,
            tolerance=_tolerance(spec),
            progress=progress,
        )
        progress("Writing the bundle")
        bundle = write_bundle(
            state_home() / "bundles",
            model=source,
            servable=conversion.servable,
            content=conversion.content,
            documents={
                "signature.json": conversion.signature,
                "example.json": conversion.example,
                "parity.json": conversion.parity.to_dict() if conversion.parity else None,
                "profile.json": _profile(validation),
            },
            fallback=conversion.fallback,
            rejected=conversion.rejected,
            notes=conversion.notes,
        )
    return bundle, conversion.parity.summary if conversion.parity else ""


def _tolerance(spec: DeploymentSpec) -> Tolerance | None:
    """The tolerances the user gave, None when the precision decides."""
    from mlflow_deploy.conversion import Tolerance

    given = {"rtol": spec.parity.rtol, "atol": spec.parity.atol}
    known = {name: value for name, value in given.items() if value is not None}
    return Tolerance(**known) if known else None


def _profile(validation: Validation | None) -> Any:
    """The reference profile of the validation rows, None without rows."""
    if validation is None:
        return None
    from mlflow_deploy.monitoring import build_profile

    label = validation.label
    features = validation.frame.drop(columns=[label]) if label else validation.frame
    return msgspec.json.decode(build_profile(features).to_json())


def _clear(target: Target, name: str) -> None:
    """Remove what a killed `create` or `delete` left under this name; the caller holds its lock."""
    record = target.read_record(name)
    if record is None or record.phase != "ready":
        target.remove(name)


def _settle(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Undo a rollout that a killed `update` left and make what runs match the record."""
    if record.candidate:
        record = moves.abandon(target, record)
    if record.rollout:
        reason = "the command that ran it was killed"
        stable = _bundle(record, record.rollout.stable)
        return machine.take_back(target, record, stable, reason, now=_now())
    target.apply(record, {number: _bundle(record, number) for number in record.wanted})
    return record


def _bundle(record: DeploymentRecord, number: int) -> Bundle:
    """The bundle of a revision; the server checks its digests when it starts."""
    return read_bundle(state_home() / "bundles" / record.revision(number).bundle, verify=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
