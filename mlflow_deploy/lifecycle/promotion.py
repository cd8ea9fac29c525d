"""What a promotion is: the plan, and how it ended."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.report import GateReport


@dataclass(frozen=True)
class Move:
    """One thing that a promotion changes.

    Attributes:
        what: `stage of VERSION`, `alias NAME`, or a key of the deployment's plan.
        old: its value now; None when there is none or only the conversion tells it.
        new: its value afterwards.
    """

    what: str
    old: Any
    new: Any


@dataclass(frozen=True)
class PromotionPlan:
    """What a promotion would change, before its gates are asked.

    Attributes:
        model_uri: the fixed version.
        stage: the policy's stage that it gets into.
        deployment: name of the stage's deployment; empty when nothing is deployed.
        action: what happens to the deployment; `none` when it serves exactly this already, or there is none.
        registry: stages and aliases that change.
        changes: what changes of the deployment.
        actions: what is done to the deployment, in order.
        gates: gates that are asked.
        notes: what the user should know.
    """

    model: str
    version: str
    model_uri: str
    stage: str
    target: str
    deployment: str
    action: Literal["create", "update", "none"]
    registry: tuple[Move, ...]
    changes: tuple[Move, ...]
    actions: tuple[str, ...]
    gates: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    Attributes:
        outcome: `planned` after a dry run; `promoted`; `refused` by gates or rules, nothing was begun; `failed`
            on the way, and taken back.
        reason: why it was refused or failed; after a dry run, why it would be.
        gates: what the gates found; None when it did not come to them.
        deployment: the deployment's description as `release.describe` gives it; None when there is none.
        notes: what could not be done besides.
        at: UTC time, ISO 8601.
        by: who promoted.
    """

    outcome: Literal["planned", "promoted", "refused", "failed"]
    plan: PromotionPlan
    at: str
    by: str
    reason: str = ""
    gates: GateReport | None = None
    deployment: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the version is there, or after a dry run, would get there."""
        return self.outcome == "promoted" or (self.outcome == "planned" and not self.reason)

    def to_dict(self) -> dict[str, Any]:
        """The promotion as plain values."""
        return {
            "ok": self.ok,
            "outcome": self.outcome,
            "reason": self.reason,
            "at": self.at,
            "by": self.by,
            "plan": dataclasses.asdict(self.plan),
            "gates": self.gates.to_dict() if self.gates else None,
            "deployment": self.deployment,
            "notes": list(self.notes),
        }
