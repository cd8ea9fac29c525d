"""Preparation: versions that may be promoted next are converted and checked while the controller waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_deploy.lifecycle.controller.state import Memory
from mlflow_deploy.lifecycle.gates.base import Gate
from mlflow_deploy.lifecycle.gates.context import GateContext
from mlflow_deploy.lifecycle.gates.run import SECURITY, gates_of, run_gates
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.lifecycle.quarantine_marks import refuse_quarantined
from mlflow_deploy.lifecycle.registry import resolve
from mlflow_deploy.lifecycle.steps import Progress
from mlflow_deploy.rollout.journal import who
from mlflow_deploy.targets import open_target

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_LOG = logging.getLogger("mlflow_deploy")


@dataclass(frozen=True)
class Upcoming:
    """A version that may get into a stage next.

    Attributes:
        serving: the version that is there now; empty for none.
    """

    model: str
    version: str
    policy: ModelPolicy
    stage: StagePolicy
    serving: str


def upcoming_of(model: RegisteredModel, policy: ModelPolicy, memory: Memory) -> Iterator[Upcoming]:
    """The versions of a model that are worth a preparation; needs no request.

    These are the newest one that is newer than what serves, and those in a stage before. None is prepared for a
    stage without a binding gate `security`: nobody has asked for these versions yet, and a preparation loads
    them.
    """
    for index, stage in enumerate(policy.stages):
        if not (stage.deployment and stage.prepare and _is_guarded(stage)):
            continue
        before = policy.stages[:index]
        seen = memory.get(model.name, stage.name)
        serving, wanted = (seen.settled, seen.wanted) if seen else ("", "")
        classic = {each.classic_stage for each in before} - {"None"}
        found = {str(each.version) for each in model.latest_versions if each.current_stage in classic}
        found |= {str(model.aliases[each.alias]) for each in before if each.alias in model.aliases}
        new = [int(each.version) for each in model.latest_versions if each.current_stage == "None"]
        if serving and new and max(new) > int(serving):
            found.add(str(max(new)))
        for version in sorted(found - {serving, wanted}, key=int, reverse=True):
            yield Upcoming(model.name, version, policy, stage, serving)


def _is_guarded(stage: StagePolicy) -> bool:
    return SECURITY in stage.gates and not stage.gates[SECURITY].get("optional")


class Preparing:
    """Prepares one version after the other, each once for the same policy and the same version that serves."""

    def __init__(self) -> None:
        self._done: set[str] = set()

    def next(self, upcoming: Sequence[Upcoming], progress: Progress) -> bool:
        """Prepare the first that was not prepared yet; returns whether there was one."""
        for each in upcoming:
            key = "\n".join((each.model, each.version, each.serving, each.stage.model_dump_json()))
            if key not in self._done:
                self._done.add(key)
                _prepare(each, progress)
                return True
        return False


def _prepare(each: Upcoming, progress: Progress) -> None:
    """Make the bundle, and run those gates whose verdicts can be taken again; what goes wrong here is told by
    the promotion, if one comes."""
    what = f"version {each.version} of {each.model} for {each.stage.name}"
    try:
        model = resolve(f"models:/{each.model}/{each.version}")
        refuse_quarantined(model)
        found = open_target(each.stage.target).read_record(each.policy.deployment_of(each.stage))
        record = found if found is not None and found.phase == "ready" else None
        gates = [gate for gate in gates_of(each.stage) if type(gate).rests_on is not Gate.rests_on]
        with GateContext(
            model, each.policy, each.stage, record=record, requester=who(), reuse=True,
            progress=lambda line: progress(f"Preparing {what}: {line}"),
        ) as context:  # fmt: skip
            report = run_gates(context, gates)
            if report.ok:
                # Also where no gate asks for it: this is what takes longest.
                _ = context.bundle
        reason = report.reason
    except Exception as error:  # noqa: BLE001 - a version that nobody has asked for must not end the controller
        reason = f"{type(error).__name__}: {error}"
    if reason:
        _LOG.info("%s is not prepared: %s", what, reason)
