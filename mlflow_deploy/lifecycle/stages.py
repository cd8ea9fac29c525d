"""Stages and aliases of a registered model: what a promotion moves, and how it is put back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_deploy.errors import DeployError
from mlflow_deploy.lifecycle.promotion import Move
from mlflow_deploy.lifecycle.registry import registry_changes, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy

_ACTIVE = ("Staging", "Production")
"""Stages whose earlier versions MLflow archives on request."""


@dataclass(frozen=True)
class RegistryMoves:
    """Moves of stages and aliases, with what they were before.

    Attributes:
        model: registered model.
        stages: version -> its stage before and after.
        aliases: alias -> the version that has it before and after; empty for none.
    """

    model: str
    stages: dict[str, tuple[str, str]]
    aliases: dict[str, tuple[str, str]]

    @property
    def moves(self) -> tuple[Move, ...]:
        """For plans."""
        stages = [Move(f"stage of version {each}", *pair) for each, pair in self.stages.items()]
        aliases = [
            Move(f"alias {alias}", old or None, new or None) for alias, (old, new) in self.aliases.items()
        ]
        return (*stages, *aliases)


def plan_moves(version: str, policy: ModelPolicy, stage: StagePolicy) -> RegistryMoves:
    """What of stages and aliases changes when a version gets into a stage.

    The version gets the stage and the alias and loses the aliases of the model's other stages; who was in the
    stage is archived.

    Raises:
        ModelNotFound: there is no such model.
        RegistryUnreachable: the registry does not answer.
    """
    import mlflow

    name = policy.name
    with registry_errors(f"models:/{name}/{version}"):
        client = mlflow.MlflowClient()
        current = {str(each.version): str(each.current_stage) for each in _versions(client, name)}
        held = {alias: str(each) for alias, each in client.get_registered_model(name).aliases.items()}
    stages: dict[str, tuple[str, str]] = {}
    classic = stage.classic_stage
    if classic != "None":
        if current[version] != classic:
            stages[version] = (current[version], classic)
        if stage.archive_existing and classic in _ACTIVE:
            others = [each for each, found in current.items() if found == classic and each != version]
            stages |= dict.fromkeys(others, (classic, "Archived"))
    aliases: dict[str, tuple[str, str]] = {}
    for each in policy.stages:
        if each.alias and each.name != stage.name and held.get(each.alias) == version:
            aliases[each.alias] = (version, "")
    if stage.alias and held.get(stage.alias) != version:
        aliases[stage.alias] = (held.get(stage.alias, ""), version)
    return RegistryMoves(name, stages, aliases)


def make_moves(moves: RegistryMoves) -> None:
    """Move stages and aliases; when one cannot be moved, those that were are put back.

    Raises:
        DeployError: the registry is as before, or the text says what is not.
    """
    import mlflow

    client = mlflow.MlflowClient()
    done = RegistryMoves(moves.model, {}, {})
    try:
        with registry_changes(f"stages and aliases of {moves.model}"), _without_hints():
            for version, pair in moves.stages.items():
                client.transition_model_version_stage(moves.model, version, pair[1])
                done.stages[version] = pair
            for alias, ends in moves.aliases.items():
                _put_alias(client, moves.model, alias, ends[1])
                done.aliases[alias] = ends
    except DeployError as error:
        try:
            take_back(done)
        except DeployError as second:
            left = ", ".join(move.what for move in done.moves)
            raise DeployError(error.text, hint=f"Put back by hand: {left} ({second.text})") from error
        raise


def take_back(moves: RegistryMoves) -> None:
    """Put stages and aliases back to what they were.

    Raises:
        DeployError: the registry cannot be written.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with registry_changes(f"stages and aliases of {moves.model}"), _without_hints():
        for alias, (old, _) in reversed(moves.aliases.items()):
            _put_alias(client, moves.model, alias, old)
        for version, (old, _) in reversed(moves.stages.items()):
            client.transition_model_version_stage(moves.model, version, old)


def _put_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    if version:
        client.set_registered_model_alias(name, alias, version)
    else:
        client.delete_registered_model_alias(name, alias)


def _versions(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Silence MLflow's hint that stages will go one day; people still use them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
