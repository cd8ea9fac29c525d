"""The check of a policy: everything in it that would fail later, all at once."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.gates.base import load_gate
from mlflow_deploy.lifecycle.policy import ModelPolicy, Policy, StagePolicy
from mlflow_deploy.targets import TARGETS

_SAMPLE = "model"
"""Stands for the model's name where the defaults are checked."""


def problems_of(policy: Policy) -> list[str]:
    """What cannot work, as sentences: unknown gates, settings, datasets, targets and impossible names."""
    found: list[str] = []
    for name in ("", *policy.models):
        place = f"models.{name}" if name else "default"
        own = policy.for_model(name or _SAMPLE)
        for stage in own.stages:
            found += [f"{place}, stage {stage.name}: {each}" for each in _of_stage(own, stage)]
    return list(dict.fromkeys(found))


def _of_stage(policy: ModelPolicy, stage: StagePolicy) -> Iterator[str]:
    for name, settings in stage.gates.items():
        try:
            gate = load_gate(name, settings)
            dataset = getattr(gate.settings, "dataset", None)
            if isinstance(dataset, str):
                policy.dataset(dataset)
        except ConfigError as error:
            yield error.text
    if stage.target not in TARGETS:
        yield f"there is no target {stage.target!r}; targets: {', '.join(TARGETS)}"
    try:
        policy.deployment_of(stage)
    except ConfigError as error:
        yield error.text
    people, needed = set(stage.approvals.by), stage.approvals.needed
    if people and needed > len(people):
        yield f"{needed} approvals are needed, but only those of {len(people)} people count"
