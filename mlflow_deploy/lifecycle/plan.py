"""Plans: what an update would change, before it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import DeploymentSpec, check_name, parse_spec
from mlflow_deploy.lifecycle.gateways import keep_address
from mlflow_deploy.lifecycle.registry import resolve
from mlflow_deploy.lifecycle.steps import Progress, make_revision, next_number
from mlflow_deploy.rollout.strategies import Step, check_strategy, steps_of
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord


@dataclasses.dataclass(frozen=True)
class PlannedChange:
    """One thing that an update would change.

    Attributes:
        key: a setting as `-C` takes it, or `model_version`, `model_uri`, `bundle`, `format` or `parity`.
        old: its value now.
        new: its value after the update; None when only the conversion would tell.
    """

    key: str
    old: Any
    new: Any


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """What an update would change.

    Attributes:
        stable: revision that has the traffic now.
        revision: number of the revision that would be made; 0 when the update would change nothing.
        changes: what would differ between the two.
        strategy: how the traffic would move.
        steps: what the new revision would get one after the other; empty when it gets everything at once.
        image: on targets with images, its `name`, and whether image and `runtime` are there: reuse or build.
        actions: what would happen, in order; among it everything that starts or stops.
        notes: what the user should know about the model's conversion, and about the deployment now.
        converted: whether the model was converted to find this out; its bundle is in the store then.
    """

    name: str
    target: str
    stable: int
    revision: int
    changes: tuple[PlannedChange, ...]
    strategy: str
    steps: tuple[Step, ...]
    image: dict[str, str]
    actions: tuple[str, ...]
    notes: tuple[str, ...]
    converted: bool


def plan_update(
    target: Target,
    name: str,
    model_uri: str | None = None,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    convert: bool = True,
    progress: Progress,
) -> UpdatePlan:
    """Find out what `update` with the same arguments would change. Nothing is changed on the target.

    Args:
        convert: convert the model, as the update would; its bundle goes into the store of this machine, where
            the update finds it again. Without it, what only the conversion tells is left open.

    Raises:
        DeployError: the update would be refused, with this error.
    """
    record = target.require(check_name(name))
    stable = record.stable
    spec = keep_address(record, parse_spec(config, flavor=flavor, base=stable.settings))
    check_strategy(target, record, spec)
    uri, image, notes = model_uri or stable.resolved_uri, {}, list(_now(record))
    if convert:
        revision, bundle = make_revision(next_number(record), uri, spec, progress, log=False)
        changes = [*_model_changes(stable, revision), *_setting_changes(stable.settings, spec)]
        image = target.image_of(revision, bundle)
        notes += _of_conversion(revision, bundle)
    else:
        changes = [*_unconverted(stable, uri, spec, progress), *_setting_changes(stable.settings, spec)]
        notes.append("The model was not converted, so its bundle and its form are not known yet")
    if not changes:
        return UpdatePlan(
            name, target.name, stable.number, 0, (), spec.strategy, (), {}, (), tuple(notes), convert
        )
    number = next_number(record)
    return UpdatePlan(
        name=name,
        target=target.name,
        stable=stable.number,
        revision=number,
        changes=tuple(changes),
        strategy=spec.strategy,
        steps=_steps(record, spec),
        image=image,
        actions=tuple(_actions(record, number, spec, image)),
        notes=tuple(notes),
        converted=convert,
    )


# --- the differences ---------------------------------------------------------------------------------------


def _model_changes(old: RevisionRecord, new: RevisionRecord) -> list[PlannedChange]:
    pairs = {
        "model_version": (_version(old), _version(new)),
        "model_uri": (old.resolved_uri, new.resolved_uri),
        "bundle": (old.bundle, new.bundle),
        "format": (old.format, new.format),
        "parity": (old.parity, new.parity),
    }
    if old.bundle == new.bundle:
        # The same files: the update would find that it has nothing to do.
        return []
    return [PlannedChange(key, before, after) for key, (before, after) in pairs.items() if before != after]


def _unconverted(
    stable: RevisionRecord, uri: str, spec: DeploymentSpec, progress: Progress
) -> list[PlannedChange]:
    """What is known to differ without converting anything."""
    progress(f"Looking up {uri}")
    model = resolve(uri)
    changes = []
    if model.uri != stable.resolved_uri:
        if stable.model_version != model.version:
            changes.append(PlannedChange("model_version", _version(stable), model.version or None))
        changes.append(PlannedChange("model_uri", stable.resolved_uri, model.uri))
    of_conversion = (spec.format, spec.parity) != (stable.settings.format, stable.settings.parity)
    if changes or of_conversion:
        changes.append(PlannedChange("bundle", stable.bundle, None))
    return changes


def _setting_changes(old: DeploymentSpec, new: DeploymentSpec) -> list[PlannedChange]:
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        PlannedChange(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the keys that `-C` takes."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _version(revision: RevisionRecord) -> str | None:
    return revision.model_version or None


# --- what would happen -------------------------------------------------------------------------------------


def _actions(
    record: DeploymentRecord, number: int, spec: DeploymentSpec, image: Mapping[str, str]
) -> list[str]:
    stable = record.stable.number
    actions = []
    if image.get("action") == "build":
        runtime = "on the runtime that is there" if image["runtime"] == "reuse" else "and its runtime"
        actions.append(f"build image {image['name']} {runtime}")
    elif image:
        actions.append(f"use image {image['name']}, which is there")
    replicas = f" with {spec.replicas} replicas" if spec.replicas > 1 else ""
    actions.append(f"start revision {number}{replicas} beside revision {stable}")
    if record.gateway == "none":
        actions.append(
            f"hand the port over from revision {stable} to revision {number}; requests may fail for a moment"
        )
    steps = _steps(record, spec)
    wait = f"at least {spec.step_seconds:g} s"
    wait += f" and {spec.step_requests} requests" if spec.step_requests else ""
    for step in steps:
        gets = f"copies of {step.copies} %" if step.copies else f"{step.share} %"
        old, new = step.replicas or (0, 0)
        by = f" by {new} new and {old} old replicas" if new else ""
        actions.append(f"give revision {number} {gets} of the requests{by} for {wait}, then analyse")
    if not steps and record.gateway != "none":
        actions.append(f"give revision {number} 100 % of the requests")
    kept = spec.keep_revisions and record.gateway != "none"
    actions.append(
        f"keep revision {stable} running without traffic" if kept else f"drain and stop revision {stable}"
    )
    return actions


def _steps(record: DeploymentRecord, spec: DeploymentSpec) -> tuple[Step, ...]:
    return steps_of(spec, record.stable.settings.replicas)


def _now(record: DeploymentRecord) -> list[str]:
    """What stands in the way of an update now."""
    if record.rollout is not None or record.candidate:
        return ["A rollout goes on; an update is refused until it has ended"]
    if len([weight for weight in record.weights.values() if weight]) > 1:
        shares = ", ".join(f"{number}={weight}" for number, weight in sorted(record.weights.items()))
        return [
            f"The traffic is shared by hand ({shares}); the update would give all of it to the new revision"
        ]
    return []


def _of_conversion(revision: RevisionRecord, bundle: Bundle) -> list[str]:
    notes = list(revision.notes)
    if revision.fallback:
        notes.append(f"The model would be served as {revision.format}: {revision.fallback}")
    return notes + [f"{form} was not taken: {why}" for form, why in bundle.manifest.rejected.items()]
