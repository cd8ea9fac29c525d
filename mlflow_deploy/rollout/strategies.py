"""Strategies: by which steps the traffic moves to a candidate."""

from __future__ import annotations

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import Unsupported
from mlflow_deploy.targets.base import DeploymentRecord, Target


def steps_of(spec: DeploymentSpec) -> tuple[int, ...]:
    """Shares of the traffic, in percent, that the candidate gets one after the other; each is analysed.

    `recreate` has no step: the candidate gets everything and the old revision is stopped. `blue-green` gives
    everything at once and keeps the old one running until the analysis is over. `canary` goes by
    `canary_steps` and ends with such a step of 100 % too, so that the last part is watched as well.
    """
    if spec.strategy == "recreate":
        return ()
    if spec.strategy == "blue-green":
        return (100,)
    return (*(share for share in spec.canary_steps if share < 100), 100)


def check_strategy(target: Target, record: DeploymentRecord, spec: DeploymentSpec) -> None:
    """Refuse a strategy that this deployment cannot do.

    Raises:
        Unsupported: it moves traffic in steps and there is nothing that could share it.
    """
    if steps_of(spec) and not target.can_split(record):
        raise Unsupported(
            target.name,
            f"strategy={spec.strategy} for a deployment without gateway",
            "Create the deployment with -C gateway=envoy, or use strategy=recreate",
        )
