"""Targets: where deployments run. One file per target, loaded by name from this table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlflow_deploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mlflow_deploy.targets.base import Target

TARGETS: dict[str, str] = {
    "docker": "mlflow_deploy.targets.docker:DockerTarget",
    "local": "mlflow_deploy.targets.local:LocalTarget",
    "memory": "mlflow_deploy.targets.memory:MemoryTarget",
}
"""Target name -> `module:class`; a class is loaded when its target is first asked for."""


def open_target(name: str) -> Target:
    """Open the target `name` with the settings of the environment.

    Raises:
        ConfigError: no target has this name.
    """
    if name not in TARGETS:
        raise ConfigError(
            f"There is no target {name!r}", why=nearest(name, TARGETS), hint=f"Targets: {', '.join(TARGETS)}"
        )
    module, _, cls = TARGETS[name].partition(":")
    target: Target = getattr(importlib.import_module(module), cls)()
    return target
