"""Strategies: by which steps the traffic moves to a candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import Unsupported
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord


@dataclass(frozen=True)
class Step:
    """What holds while a rollout watches.

    Attributes:
        share: percent of the requests that the candidate answers.
        copies: percent of the requests that the candidate gets copies of.
        stable_copies: percent that the stable revision gets copies of.
        replicas: how many replicas the stable revision and the candidate have; None = as their settings say.
        compare: what of the answers is compared: each row of the same requests, their distribution, or nothing.
    """

    share: int
    copies: int = 0
    stable_copies: int = 0
    replicas: tuple[int, int] | None = None
    compare: Literal["rows", "distribution", "nothing"] = "distribution"


def steps_of(spec: DeploymentSpec, stable_replicas: int = 1) -> tuple[Step, ...]:
    """The steps of an update; each is analysed.

    `recreate` has no step: the candidate gets everything and the old revision is stopped. `blue-green` gives
    everything at once and keeps the old one running until the analysis is over. `canary` goes by
    `canary_steps` and ends with such a step of 100 % too, so that the last part is watched as well. `rolling`
    puts one replica after the other in the place of an old one. `shadow` gives the candidate copies, and when
    its answers agree, goes on like `blue-green`.

    Args:
        stable_replicas: replicas of the stable revision.
    """
    # The stable revision has nothing to do then, and answers to the same requests are the fairest to compare.
    everything = Step(100, stable_copies=100)
    if spec.strategy == "recreate":
        return ()
    if spec.strategy == "blue-green":
        return (everything,)
    if spec.strategy == "shadow":
        return (Step(0, copies=spec.shadow_percent, compare="rows"), Step(100, compare="nothing"))
    if spec.strategy == "rolling":
        return tuple(_rolled(each, spec.replicas, stable_replicas) for each in range(1, spec.replicas + 1))
    return (*(Step(share) for share in spec.canary_steps if share < 100), everything)


def first_replicas(spec: DeploymentSpec) -> int:
    """How many replicas of the candidate are started before the first step; 0 = as its settings say."""
    return 1 if spec.strategy == "rolling" else 0


def check_strategy(target: Target, record: DeploymentRecord, spec: DeploymentSpec) -> None:
    """Refuse a strategy that this deployment cannot do.

    Raises:
        Unsupported: it moves traffic in steps and there is nothing that could share it, or it compares answers
            and nothing records them.
    """
    steps = steps_of(spec)
    if steps and not target.can_split(record):
        raise Unsupported(
            target.name,
            f"strategy={spec.strategy} for a deployment without gateway",
            "Create the deployment with -C gateway=envoy, or use strategy=recreate",
        )
    if any(step.compare == "rows" for step in steps) and Capability.RECORDING not in target.capabilities:
        raise Unsupported(target.name, f"strategy={spec.strategy}", "Use strategy=canary")


def _rolled(new: int, wanted: int, old: int) -> Step:
    """The step in which this many of the wanted replicas are new ones.

    One old replica stays to the end, so that there is always one to go back to at once.
    """
    left = max(1, math.ceil(old * (wanted - new) / wanted))
    share = round(100 * new / wanted)
    # Copies of everything would be too much for the one replica that is left of many.
    copies = 100 // old if share == 100 else 0
    return Step(share, stable_copies=copies, replicas=(left, new))
