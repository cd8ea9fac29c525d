"""What every gate offers, what it finds, and the table of the gates that are built in."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_deploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext

Outcome: TypeAlias = Literal["passed", "failed", "skipped"]

GROUP = "mlflow_deploy.gates"
"""Group of entry points that bring gates of other packages."""

GATES: dict[str, str] = {
    "approval": "mlflow_deploy.lifecycle.gates.approval:ApprovalGate",
    "size": "mlflow_deploy.lifecycle.gates.size:SizeGate",
    "security": "mlflow_deploy.lifecycle.gates.security:SecurityGate",
    "signature": "mlflow_deploy.lifecycle.gates.signature:SignatureGate",
    "smoke": "mlflow_deploy.lifecycle.gates.smoke:SmokeGate",
    "parity": "mlflow_deploy.lifecycle.gates.parity:ParityGate",
    "latency": "mlflow_deploy.lifecycle.gates.latency:LatencyGate",
    "metric": "mlflow_deploy.lifecycle.gates.metric:MetricGate",
    "champion": "mlflow_deploy.lifecycle.gates.champion:ChampionGate",
    "fairness": "mlflow_deploy.lifecycle.gates.fairness:FairnessGate",
}
"""Gate -> `module:class`, in the order in which they are run: what is cheap first."""


class GateSettings(BaseModel):
    """Settings that all gates have."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    optional: bool = False
    """Whether a version may go on although this gate failed or was skipped."""


@dataclass(frozen=True)
class Verdict:
    """What a gate found.

    Attributes:
        summary: one sentence with the numbers behind the outcome.
        evidence: plain values that JSON can hold.
    """

    outcome: Outcome
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def passed(summary: str, **evidence: Any) -> Verdict:
    """The verdict of a version that may go on."""
    return Verdict("passed", summary, evidence)


def failed(summary: str, **evidence: Any) -> Verdict:
    """The verdict of a version that may not."""
    return Verdict("failed", summary, evidence)


def skipped(summary: str, **evidence: Any) -> Verdict:
    """The verdict when nothing could be checked, which counts as failed unless the gate is optional."""
    return Verdict("skipped", summary, evidence)


class Gate(ABC):
    """One check. Gates of other packages subclass this and are named in the policy.

    Attributes:
        name: as the policy names it.
        loads_model: whether the check loads or runs the model, which is not done once `security` has failed.
        settings_type: what the policy may set.
    """

    name: ClassVar[str]
    loads_model: ClassVar[bool] = True
    settings_type: ClassVar[type[GateSettings]] = GateSettings

    settings: GateSettings

    def __init__(self, settings: GateSettings) -> None:
        self.settings = settings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        """What the verdict rests on besides the model's files, the gate's settings and its own module.

        A verdict `passed` is taken again where all of that is the same.

        Returns:
            Plain values, and digests of what is large; None where the check must be made each time.
        """
        return None

    @abstractmethod
    def check(self, context: GateContext) -> Verdict:
        """Look at the version.

        Raises:
            DeployError: the check could not be done; the gate counts as failed with this reason.
        """


def load_gate(name: str, settings: Mapping[str, Any]) -> Gate:
    """Make the gate that a policy names.

    Args:
        name: a built-in gate, an entry point of group `mlflow_deploy.gates`, or `module:class`.
        settings: what the policy says of it.

    Raises:
        ConfigError: there is no such gate, it cannot be imported, or a setting cannot be used.
    """
    kind = _gate_type(name)
    try:
        found = kind.settings_type.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = list(kind.settings_type.model_fields)
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            why = f"there is no such setting; {nearest(key, known)}".rstrip("; ")
        raise ConfigError(
            f"Gate {name}: {key or 'the settings'} cannot be used",
            why=why,
            hint=f"Settings: {', '.join(known)}",
        ) from None
    return kind(found)


def _gate_type(name: str) -> type[Gate]:
    if ":" in name:
        return _imported(name, name)
    if name in GATES:
        return _imported(name, GATES[name])
    others = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in others:
        return _imported(name, others[name])
    known = [*GATES, *others]
    raise ConfigError(
        f"There is no gate {name!r}",
        why=nearest(name, known),
        hint=f"Gates: {', '.join(known)}; your own as module:class",
    )


def _imported(name: str, path: str) -> type[Gate]:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The gate {name!r} cannot be loaded from {path}", why=str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Gate)):
        raise ConfigError(
            f"The gate {name!r} is no class derived from mlflow_deploy.lifecycle.gates.base.Gate"
        )
    return found
