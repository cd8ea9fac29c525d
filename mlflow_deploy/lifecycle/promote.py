"""Promotion, top to bottom: plan, gates, deployment, stage and alias, and what is told of it afterwards.

Whatever fails leaves deployment, stages and aliases as before, and the reason on the version's page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError, DeploymentBusy, ModelNotFound, PromotionRefused, Quarantined
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.gates.context import GateContext
from mlflow_deploy.lifecycle.gates.report import GateReport
from mlflow_deploy.lifecycle.gates.run import gates_of, run_gates
from mlflow_deploy.lifecycle.page import outcome_of, write_page
from mlflow_deploy.lifecycle.plan import plan_update
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.lifecycle.policy_source import policy_of
from mlflow_deploy.lifecycle.promotion import Move, Promotion, PromotionPlan
from mlflow_deploy.lifecycle.quarantine_marks import refuse_quarantined
from mlflow_deploy.lifecycle.records.moves_of_model import moving
from mlflow_deploy.lifecycle.records.recorder import recorded
from mlflow_deploy.lifecycle.registry import ResolvedModel, registry_errors, resolve
from mlflow_deploy.lifecycle.stages import RegistryMoves, make_moves, plan_moves
from mlflow_deploy.lifecycle.steps import Progress, now
from mlflow_deploy.rollout.journal import noted, who
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord


@dataclasses.dataclass(frozen=True)
class _Case:
    """All that the steps of one promotion need.

    Attributes:
        record: the stage's deployment now; None when there is none.
    """

    model: ResolvedModel
    policy: ModelPolicy
    stage: StagePolicy
    target: Target
    deployment: str
    record: DeploymentRecord | None
    moves: RegistryMoves
    by: str


def promote(
    model: str,
    version: str,
    stage: str,
    *,
    policy: Path | str | ModelPolicy | None = None,
    dry_run: bool = False,
    progress: Progress,
) -> Promotion:
    """Bring a version into a stage: gates, deployment, MLflow stage and alias; the outcome is on its page.

    Args:
        version: its number, an MLflow stage, or an alias with @ before it.
        stage: a stage of the model's policy.
        policy: the policy of the model, or the file to read it from; None to find it.
        dry_run: plan it and ask the gates, and change nothing.

    Returns:
        How it ended. A refusal and a failure are no errors here: everything is as before then.

    Raises:
        ConfigError: the policy cannot be used, or has no such stage.
        DeploymentBusy: another promotion of the model goes on.
        ModelNotFound: there is no such version.
        RegistryUnreachable: the registry does not answer; nothing was begun.
    """
    with promoting(model):
        return promote_alone(model, version, stage, policy=policy, dry_run=dry_run, progress=progress)


@contextlib.contextmanager
def promoting(model: str) -> Iterator[None]:
    """Hold a registered model against other promotions from this state folder.

    Raises:
        DeploymentBusy: another command holds it.
    """
    folder = state_home() / "promotions"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = hashlib.sha256(model.encode()).hexdigest()[:32]
    with contextlib.ExitStack() as stack:
        try:
            owner = f"a promotion of {model}, process {os.getpid()}"
            stack.enter_context(locked(folder / f"{name}.lock", wait=False, owner=owner))
        except LockHeldError as held:
            raise DeploymentBusy(model, held.owner) from None
        yield


def promote_alone(
    model: str,
    version: str,
    stage: str,
    *,
    policy: Path | str | ModelPolicy | None = None,
    requester: str = "",
    dry_run: bool = False,
    progress: Progress,
) -> Promotion:
    """The same as `promote` for callers that hold the model by `promoting`.

    Args:
        requester: on whose behalf; empty for the user who runs this.
    """
    case = _case(model, version, stage, policy, requester or who())
    plan = _plan(case, progress)
    at = now()
    if reason := _forbidden(case):
        told = Promotion("planned", plan, at, case.by, reason=reason)
        return told if dry_run else _ended(case, dataclasses.replace(told, outcome="refused"))
    with GateContext(
        case.model, case.policy, case.stage, record=case.record, requester=case.by, progress=progress,
        reuse=True,
    ) as context:  # fmt: skip
        report = run_gates(context)
        told = Promotion("planned", plan, at, case.by, reason=report.reason, gates=report)
        if dry_run:
            return told
        if not report.ok:
            return _ended(case, dataclasses.replace(told, outcome="refused"))
        return _ended(case, _done(case, told, context, progress))


def _case(model: str, version: str, stage: str, policy: Path | str | ModelPolicy | None, by: str) -> _Case:
    uri = f"models:/{model}{version}" if version.startswith("@") else f"models:/{model}/{version}"
    found = resolve(uri)
    if not found.name:
        raise ModelNotFound(uri, why="only versions of registered models can be promoted")
    own = policy if isinstance(policy, ModelPolicy) else policy_of(found.name, policy)
    # A policy that was written by hand need not say whose it is; deployments and moves are named by it.
    own = own.model_copy(update={"name": found.name})
    wanted = own.stage(stage)
    name, target = own.deployment_of(wanted), open_target(wanted.target)
    return _Case(
        model=found,
        policy=own,
        stage=wanted,
        target=target,
        deployment=name,
        record=_ready(target, name) if name else None,
        moves=plan_moves(found.version, own, wanted),
        by=by,
    )


def _ready(target: Target, name: str) -> DeploymentRecord | None:
    record = target.read_record(name)
    return record if record is not None and record.phase == "ready" else None


def _forbidden(case: _Case) -> str:
    """Why the version may not go there whatever its gates say; an empty string when it may.

    It is in quarantine, has not passed the stage before, or serves in another stage whose name it would lose.
    """
    model, policy, stage = case.model, case.policy, case.stage
    try:
        refuse_quarantined(model)
    except Quarantined as error:
        return error.text
    before = policy.before(stage)
    if policy.strict_path and before is not None:
        import mlflow

        with registry_errors(model.uri):
            tags = mlflow.MlflowClient().get_model_version(model.name, model.version).tags
        if outcome_of(tags, before.name).get("outcome") != "promoted":
            return f"it has not passed {before.name}; promote it to {before.name} first"
    for other in policy.stages:
        name = policy.deployment_of(other)
        if other.name == stage.name or not name:
            continue
        record = _ready(open_target(other.target), name)
        stable = record.stable if record else None
        same = stable and (stable.model_name, stable.model_version) == (model.name, model.version)
        later = policy.stages.index(stage) > policy.stages.index(other)
        if same and not (later and stage.deployment):
            return (
                f"it serves in deployment {name} of {other.name}; promote another version to {other.name} "
                "first, or delete the deployment"
            )
    return ""


# --- the plan ----------------------------------------------------------------------------------------------


def _plan(case: _Case, progress: Progress) -> PromotionPlan:
    changes: list[Move] = []
    actions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    action: Any = "none"
    if case.deployment and case.record is None:
        action, actions = "create", (f"create deployment {case.deployment} on {case.target.name}",)
        changes.append(Move("model_version", None, case.model.version))
    elif case.deployment:
        found = plan_update(
            case.target, case.deployment, case.model.uri, config=case.stage.settings, convert=False,
            progress=progress,
        )  # fmt: skip
        action = "update" if found.changes else "none"
        changes += [Move(each.key, each.old, each.new) for each in found.changes]
        actions, notes = found.actions, found.notes
    return PromotionPlan(
        model=case.model.name,
        version=case.model.version,
        model_uri=case.model.uri,
        stage=case.stage.name,
        target=case.target.name,
        deployment=case.deployment,
        action=action,
        registry=case.moves.moves,
        changes=tuple(changes),
        actions=actions,
        gates=tuple(gate.name for gate in gates_of(case.stage)),
        notes=notes,
    )


# --- doing it ----------------------------------------------------------------------------------------------


def _done(case: _Case, told: Promotion, context: GateContext, progress: Progress) -> Promotion:
    """Deploy, then move stage and alias: they name what serves, never what shall."""
    deployed: dict[str, Any] | None = None
    try:
        if case.deployment:
            deployed = _deploy(case, told, context, progress)
        progress("Moving stage and alias")
        notes = _move(case)
    except BaseException as error:
        try:
            _undeploy(case, deployed, progress)
        except DeployError as second:
            error = DeployError(f"{error}; and deployment {case.deployment} is not put back", why=second.text)
        if not isinstance(error, DeployError):
            raise
        return dataclasses.replace(told, outcome="failed", reason=error.text)
    return dataclasses.replace(told, outcome="promoted", deployment=deployed, notes=notes)


def _move(case: _Case) -> tuple[str, ...]:
    """Move stage and alias, and keep who did it. When only that cannot be kept, it is a note."""
    moved = False
    try:
        with moving(case.model.name, by=case.by, reason=f"promotion to {case.stage.name}"):
            make_moves(case.moves)
            moved = True
    except DeployError as error:
        if not moved:
            raise
        return (f"who moved stage and alias is not in the history of {case.model.name}: {error.text}",)
    return ()


def _deploy(case: _Case, told: Promotion, context: GateContext, progress: Progress) -> dict[str, Any]:
    found = _ready(case.target, case.deployment)
    if (found and found.stable) != (case.record and case.record.stable):
        raise PromotionRefused(
            f"Version {case.model.version} of {case.model.name}",
            case.stage.name,
            f"deployment {case.deployment} was changed while the gates compared with it",
            "Promote it again",
        )
    deploy = release.create if case.record is None else release.update
    return deploy(
        case.target,
        case.deployment,
        case.model.uri,
        config=case.stage.settings,
        evidence=_evidence(case, told.gates),
        checked=context.bundle_to_deploy(),
        progress=progress,
    )


def _evidence(case: _Case, report: GateReport | None) -> dict[str, Any]:
    """What the release record keeps."""
    return {
        "stage": case.stage.name,
        "requester": case.by,
        "gates": report.to_dict() if report else None,
    }


def _undeploy(case: _Case, deployed: dict[str, Any] | None, progress: Progress) -> None:
    """Give the requests back to what had them; the registry could not be written."""
    if deployed is None:
        return
    if case.record is None:
        release.delete(case.target, case.deployment)
    elif deployed["revision"] != case.record.stable.number:
        weights = {number: weight for number, weight in case.record.weights.items() if weight}
        release.set_traffic(case.target, case.deployment, weights, action="rollback", progress=progress)


# --- telling it --------------------------------------------------------------------------------------------


def _ended(case: _Case, promotion: Promotion) -> Promotion:
    """Tell the outcome where people look: the version's page, the run, and the deployment's history.

    What cannot be told is a note: what is done, is done.
    """
    notes: list[str] = []
    evidence = ""
    try:
        evidence = _log_gates(case, promotion.gates)
        if promotion.gates and not evidence:
            notes.append("the gates' report was not logged to MLflow: the version belongs to no run")
    except DeployError as error:
        notes.append(f"the gates' report was not logged to MLflow: {error.text}")
    try:
        write_page(promotion, evidence)
    except DeployError as error:
        notes.append(f"the outcome is not on the version's page: {error.text}")
    if promotion.outcome == "refused" and case.record is not None:
        try:
            _note_refusal(case, promotion)
        except DeployError as error:
            notes.append(f"the refusal is not in the history of {case.deployment}: {error.text}")
    return dataclasses.replace(promotion, notes=(*promotion.notes, *notes))


def _log_gates(case: _Case, report: GateReport | None) -> str:
    """Log the report to the run that made the version; returns its URI, empty without a run."""
    if report is None or not case.model.run_id:
        return ""
    import mlflow

    name = f"gates/{case.stage.name}/{report.at.replace(':', '')}.json"
    with registry_errors(case.model.uri):
        text = json.dumps(report.to_dict(), indent=1, default=str)
        mlflow.MlflowClient().log_text(case.model.run_id, text, name)
    return f"runs:/{case.model.run_id}/{name}"


def _note_refusal(case: _Case, promotion: Promotion) -> None:
    """Note the refusal in the deployment's history, where `mlflow-deploy status` finds the reason."""
    with recorded(case.target, case.deployment) as recorder:
        record = _ready(case.target, case.deployment)
        if record is None:
            return
        recorder.intend("update", evidence=_evidence(case, promotion.gates))
        reason = f"version {case.model.version} was refused for {case.stage.name}: {promotion.reason}"
        case.target.write_record(noted(record, "update", "rolled_back", reason=reason))
