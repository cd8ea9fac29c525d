"""What leaves: versions that were archived or deleted, models that are gone, and what a refusal puts back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from mlflow_deploy.errors import DeployError, ModelNotFound
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.controller.state import Memory
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.lifecycle.records.moves_of_model import Move, moving
from mlflow_deploy.lifecycle.registry import registered_model, registry_errors
from mlflow_deploy.lifecycle.stages import RegistryMoves, make_moves, plan_moves
from mlflow_deploy.rollout.journal import who
from mlflow_deploy.targets import open_target

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel


def served_version(model: str, target: str, deployment: str) -> str:
    """Version of this model that a deployment serves; empty when it serves none."""
    record = open_target(target).read_record(deployment)
    if record is None or record.phase != "ready" or record.stable.model_name != model:
        return ""
    return record.stable.model_version


def drain(model: str, policy: ModelPolicy, stage: StagePolicy, served: str) -> str:
    """Take down a deployment whose version was archived or deleted; any other serves on.

    Returns:
        Why it was taken down; empty when it was not.
    """
    if not served or not _gone(model, served):
        return ""
    release.delete(open_target(stage.target), policy.deployment_of(stage))
    return "it was archived or deleted"


def _gone(name: str, version: str) -> bool:
    import mlflow

    with registry_errors(f"models:/{name}"):
        found = mlflow.MlflowClient().search_model_versions(f"name='{name}'", max_results=10_000)
    stages = {str(each.version): each.current_stage for each in found}
    return stages.get(version, "Archived") == "Archived"


def registry_digest() -> str:
    """The registry's URI in short; it may have a password, so it is not kept itself."""
    import mlflow

    return hashlib.sha256(mlflow.get_registry_uri().encode()).hexdigest()[:16]


def drain_gone(listed: Collection[str], memory: Memory) -> Iterator[tuple[str, str, str, str]]:
    """Take down the deployments of registered models that are no longer there.

    Nothing is taken down where the registry is another one than that which the model was promoted from.

    Args:
        listed: names of all registered models.

    Yields:
        Model, stage, version, and why it was not taken down; empty when it was.
    """
    for model, stage, seen in memory.all():
        if model in listed or not seen.deployment:
            continue
        if seen.registry != registry_digest():
            yield (
                model,
                stage,
                seen.settled,
                "the model is not in this registry; it was promoted from another one",
            )
        elif not listed:
            yield model, stage, seen.settled, "the registry has no model at all; deployments serve on"
        elif _is_deleted(model):
            try:
                served = served_version(model, seen.target, seen.deployment)
                if served:
                    release.delete(open_target(seen.target), seen.deployment)
                    yield model, stage, served, ""
                memory.forget(model, stage)
            except DeployError as error:
                yield model, stage, seen.settled, error.text


def _is_deleted(model: str) -> bool:
    try:
        registered_model(model)
    except ModelNotFound:
        return True
    return False


def put_back(
    model: RegisteredModel,
    policy: ModelPolicy,
    stage: StagePolicy,
    refused: str,
    moves: list[Move],
    reason: str,
) -> None:
    """Give stage and alias back to the version that serves, and the refused version the stage it had before.

    Raises:
        DeployError: the registry is as before, or the text says what is not.
    """
    served = served_version(model.name, stage.target, policy.deployment_of(stage))
    planned = plan_moves(served, policy, stage) if served else RegistryMoves(model.name, {}, {})
    stages, aliases = dict(planned.stages), dict(planned.aliases)
    if stage.alias and not served and str(model.aliases.get(stage.alias, "")) == refused:
        aliases[stage.alias] = (refused, "")
    classic = [each for each in model.latest_versions if str(each.version) == refused]
    if stage.classic_stage != "None" and any(each.current_stage == stage.classic_stage for each in classic):
        stages[refused] = (stage.classic_stage, _before(moves, refused, stage.classic_stage))
    with moving(model.name, by=who(), reason=f"put back, it was refused: {reason}"):
        make_moves(dataclasses.replace(planned, stages=stages, aliases=aliases))


def _before(moves: list[Move], version: str, stage: str) -> str:
    found = [each.before for each in moves if (each.kind, each.what, each.after) == ("stage", version, stage)]
    return found[-1] if found else "None"
