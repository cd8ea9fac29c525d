"""One look at the registry: what it says, what is deployed, and what is done about the difference."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mlflow_deploy.errors import DeployError, DeploymentBusy
from mlflow_deploy.lifecycle.controller.leaving import (
    drain,
    drain_gone,
    put_back,
    registry_digest,
    served_version,
)
from mlflow_deploy.lifecycle.controller.preparing import Upcoming, upcoming_of
from mlflow_deploy.lifecycle.controller.state import Memory, Seen, decide
from mlflow_deploy.lifecycle.policy import ModelPolicy, Policy, StagePolicy
from mlflow_deploy.lifecycle.policy_source import TAG, policy_from
from mlflow_deploy.lifecycle.promote import promote_alone, promoting
from mlflow_deploy.lifecycle.records.moves_of_model import mover, moves_of
from mlflow_deploy.lifecycle.registry import registry_errors
from mlflow_deploy.lifecycle.steps import Progress

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_PAGE = 1000
"""Models per request; the most that MLflow gives."""

_TAGS = "deploy."
_RETRY_SECONDS = 60.0
"""After which time a promotion that failed on the way is tried again."""


@dataclass(frozen=True)
class Event:
    """One thing that the controller did, or could not do.

    Attributes:
        action: promoted, refused, failed, drained, error, waiting (another controller acts), or listening.
        version: that it is about; empty when it is about none.
    """

    model: str
    stage: str
    action: str
    version: str = ""
    reason: str = ""


def reconcile(
    policy: Policy,
    memory: Memory,
    *,
    models: tuple[str, ...],
    every: bool,
    progress: Progress,
    upcoming: list[Upcoming] | None = None,
    holds: Callable[[], bool] = lambda: True,
) -> list[Event]:
    """Look at all models once, and promote or drain what differs.

    Reading the registry takes one request for each thousand models; more are made only for what differs.

    Args:
        models: models to follow besides those that the policy file names and those with a tag `deploy.policy`.
        every: follow all models.
        upcoming: gets the versions that are worth a preparation.
        holds: asked before each promotion, whether this is still the controller that acts; when it is not,
            nothing more is begun.

    Returns:
        What was done; a model that cannot be handled is an event and does not keep the others waiting.

    Raises:
        RegistryUnreachable: the registry does not answer; nothing was changed.
    """
    events: list[Event] = []
    registered = list(_registered())
    for model in registered:
        if not (every or model.name in models or model.name in policy.models or TAG in model.tags):
            continue
        try:
            own = policy_from(policy, model.name, model.tags)
        except DeployError as error:
            events.append(Event(model.name, "", "error", reason=error.text))
            continue
        for stage in own.stages:
            if not stage.deployment:
                continue
            try:
                events += _stage(model, own, stage, memory, progress, holds)
            except DeployError as error:
                events.append(Event(model.name, stage.name, "error", reason=error.text))
        if upcoming is not None:
            upcoming += upcoming_of(model, own, memory)
    for name, where, version, trouble in drain_gone({each.name for each in registered}, memory):
        why = trouble or "the model was deleted or renamed"
        events.append(Event(name, where, "error" if trouble else "drained", version, why))
    return events


def _registered() -> Iterator[RegisteredModel]:
    import mlflow

    client, token = mlflow.MlflowClient(), None
    while True:
        with registry_errors("models:/"):
            page = client.search_registered_models(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _stage(
    model: RegisteredModel,
    policy: ModelPolicy,
    stage: StagePolicy,
    memory: Memory,
    progress: Progress,
    holds: Callable[[], bool],
) -> list[Event]:
    before = memory.get(model.name, stage.name)
    alias, classic = _place(model, stage)
    wanted = decide(before, alias, classic)
    seen = msgspec.structs.replace(before or Seen(), alias=alias, classic=classic, wanted=wanted)
    if before is not None and before.wanted != wanted:
        seen = msgspec.structs.replace(seen, retry_at=0.0)
    # The intent is remembered before it is acted on: a killed controller goes on with it.
    memory.put(model.name, stage.name, seen)
    served = served_version(model.name, stage.target, policy.deployment_of(stage))
    if not wanted:
        why = drain(model.name, policy, stage, served)
        return [Event(model.name, stage.name, "drained", served, why)] if why else []
    if served == wanted == seen.settled:
        return []
    key = _key(model.name, wanted, stage) if seen.refused else ""
    if (seen.refused and seen.refused == key) or time.time() < seen.retry_at:
        return []
    try:
        # Who promotes from a terminal moves stage and alias last: what was read before that is out of date.
        with promoting(model.name):
            fresh = _now(model.name)
            if _place(fresh, stage) != (alias, classic) or not holds():
                return []
            return [_promote(fresh, policy, stage, wanted, seen, memory, progress)]
    except DeploymentBusy:
        # It is looked at again next time.
        return []


def _promote(
    model: RegisteredModel,
    policy: ModelPolicy,
    stage: StagePolicy,
    wanted: str,
    seen: Seen,
    memory: Memory,
    progress: Progress,
) -> Event:
    """Promote, and remember how it ended: what the promotion itself moved is no news at the next look."""
    name = model.name
    progress(f"Promoting version {wanted} of {name} to {stage.name}")
    try:
        moves = moves_of(name)
        by = mover(moves, wanted, stage.classic_stage, stage.alias)
        found = promote_alone(name, wanted, stage.name, policy=policy, requester=by, progress=progress)
        outcome, reason = found.outcome, found.reason
        if outcome == "refused" and stage.put_back:
            put_back(model, policy, stage, wanted, moves, reason)
    except DeployError as error:
        outcome, reason = "failed", error.text
    if outcome == "promoted":
        after = Seen(
            alias=wanted if stage.alias else "",
            classic=wanted if stage.classic_stage != "None" else "",
            wanted=wanted,
            settled=wanted,
            target=stage.target,
            deployment=policy.deployment_of(stage),
            registry=registry_digest(),
        )
    elif outcome == "refused":
        # What was put back is asked again when somebody moves it again.
        key = "" if stage.put_back else _key(name, wanted, stage)
        after = msgspec.structs.replace(seen, refused=key, retry_at=0.0)
    else:
        after = msgspec.structs.replace(seen, retry_at=time.time() + _RETRY_SECONDS)
    memory.put(name, stage.name, after)
    return Event(name, stage.name, outcome, wanted, reason)


def _place(model: RegisteredModel, stage: StagePolicy) -> tuple[str, str]:
    """The version that has the stage's alias, and the newest in MLflow's stage; empty for none."""
    alias = str(model.aliases.get(stage.alias, "")) if stage.alias else ""
    return alias, _newest(model, stage.classic_stage)


def _now(name: str) -> RegisteredModel:
    import mlflow

    with registry_errors(f"models:/{name}"):
        return mlflow.MlflowClient().get_registered_model(name)


def _newest(model: RegisteredModel, stage: str) -> str:
    versions = [int(each.version) for each in model.latest_versions if each.current_stage == stage]
    return str(max(versions)) if versions and stage != "None" else ""


def _key(name: str, version: str, stage: StagePolicy) -> str:
    """What a refusal depends on, in short: the stage's policy, and approvals and other words on the version."""
    import mlflow

    with registry_errors(f"models:/{name}/{version}"):
        tags: Mapping[str, str] = mlflow.MlflowClient().get_model_version(name, version).tags
    words = sorted((key, value) for key, value in tags.items() if key.startswith(_TAGS))
    text = msgspec.json.encode([version, stage.model_dump(mode="json"), words])
    return hashlib.sha256(text).hexdigest()
