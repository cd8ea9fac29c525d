"""Which target a deployment is on, when the user does not say."""

from __future__ import annotations

import contextlib
import importlib.util

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import ConfigError, DeployError, DeploymentNotFound
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.base import Target


def find_target(name: str, wanted: str | None = None) -> Target:
    """The target that has a deployment, in whatever phase.

    Args:
        wanted: name of the target; None to look for it on all that this machine can reach.

    Raises:
        DeploymentNotFound: none of them has it.
        ConfigError: several have one of this name, or no target is called `wanted`.
        DeployError: a target that was used from this machine does not answer, and no other one has it.
    """
    if wanted is not None:
        return open_target(wanted)
    found: list[Target] = []
    known: list[str] = []
    silent: DeployError | None = None
    for target, used in _reachable():
        if found and not used:
            continue
        try:
            names = target.names()
        except DeployError as error:
            silent = error if used else silent
            continue
        known += names
        if name in names:
            found.append(target)
    if len(found) > 1:
        places = " and ".join(target.name for target in found)
        raise ConfigError(
            f"There are deployments {name!r} on {places}", hint=f"Name the target with -t {found[0].name}"
        )
    if found:
        return found[0]
    if silent is not None:
        raise silent
    raise DeploymentNotFound(name, "local", known)


def find_archive(name: str, wanted: str | None = None) -> Target:
    """The target that has a deployment, or else one that had it and keeps its release records.

    Raises:
        DeploymentNotFound: none of them has or had it.
        DeployError: as `find_target`.
    """
    try:
        target = find_target(name, wanted)
    except DeploymentNotFound:
        for target, _ in _reachable():
            with contextlib.suppress(DeployError):
                if name in target.archive_names():
                    return target
        raise
    if wanted is not None and name not in {*target.names(), *target.archive_names()}:
        raise DeploymentNotFound(name, target.name, [*target.names(), *target.archive_names()])
    return target


def used_targets(wanted: str | None = None) -> list[Target]:
    """The target called `wanted`, or all that were used from this machine."""
    if wanted is not None:
        return [open_target(wanted)]
    return [target for target, used in _reachable() if used]


def _reachable() -> list[tuple[Target, bool]]:
    """(target, whether it was used from this machine); `local` always counts as used."""
    found = [(open_target("local"), True)]
    if importlib.util.find_spec("docker") is not None:
        found.append((open_target("docker"), (state_home() / "docker").is_dir()))
    return found
