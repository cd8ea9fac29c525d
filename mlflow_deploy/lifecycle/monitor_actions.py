"""Carries out what the policy says on a monitor's alert (rollback, pause-rollout, retrain) and notes it.

On target `local` the monitor job starts this module as a program for each phase of an action, with the
request as JSON on its standard input; for others `monitor_hand` calls it. Every phase may be asked for twice: a
rollback happens only while the revision that the alert is about serves, and a retraining only when none of the
same deployment runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.config_monitor import ActionSpec
from mlflow_deploy.errors import DeployError, DeploymentBusy, MonitorActionFailed
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle import release
from mlflow_deploy.monitoring.action_requests import ACTOR, ActionRequest
from mlflow_deploy.rollout.journal import Action, Outcome, noted
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord

_LOG = logging.getLogger("mlflow_deploy.monitoring")
_BUSY_SECONDS = 3600.0
_BUSY_POLL_SECONDS = 2.0


def carry_out(target: Target, request: ActionRequest) -> str:
    """Carry out one phase of an action and tell what was done.

    Raises:
        DeployError: it cannot be done now.
    """
    if request.phase == "note":
        outcome: Outcome = "failed" if request.failed else "done"
        if request.action == "retrain" and not request.failed:
            outcome = "started"
        reason = "; ".join(filter(None, (request.detail, request.reason)))
        note(target, request.deployment, request.action, outcome, request.revision, reason)
        return "noted"
    if request.action == "rollback":
        return _roll_back(target, request)
    if request.action == "pause-rollout":
        return _pause(target, request)
    if request.action == "retrain":
        return _begin_retraining(target, request)
    return ""


def note(
    target: Target, deployment: str, action: Action, outcome: Outcome, revision: int, reason: str
) -> None:
    """Write a change into the history of a deployment.

    Raises:
        DeploymentBusy: another command works on it.
        DeploymentNotFound: it is gone.
    """
    with target.lock(deployment):
        record = target.require(deployment)
        known = {each.number: each for each in record.revisions}
        target.write_record(noted(record, action, outcome, revision=known.get(revision), reason=reason))


def _roll_back(target: Target, request: ActionRequest) -> str:
    record = target.require(request.deployment)
    if record.rollout is not None:
        if request.revision != record.rollout.candidate:
            return f"nothing: revision {request.revision} is being replaced already"
        release.steer(target, request.deployment, "abort")
        return f"the rollout of revision {request.revision} is taken back"
    if record.stable.number != request.revision:
        return f"nothing: revision {record.stable.number} serves, not {request.revision}"
    release.rollback(target, request.deployment, progress=_LOG.info)
    after = target.require(request.deployment).stable.number
    return f"rolled back from revision {request.revision} to {after}"


def _pause(target: Target, request: ActionRequest) -> str:
    record = target.require(request.deployment)
    if record.rollout is None:
        return "nothing: no rollout goes on"
    release.steer(target, request.deployment, "pause")
    return f"the rollout of revision {record.rollout.candidate} is paused"


def _begin_retraining(target: Target, request: ActionRequest) -> str:
    """Start the training beside the monitor, which would be late for hours otherwise."""
    _model_name(target.require(request.deployment), request.revision)
    settings = ActionSpec.model_validate(request.settings)
    log = _file(target, request.deployment, "log")
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", ACTOR, "--target", target.name, "--retrain"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # Projects name their interpreter `python`: with env_manager=local that is the monitor's own.
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"},
        )
    if child.stdin is None:
        raise AssertionError("a pipe was asked for")
    with child.stdin as pipe:
        pipe.write(msgspec.json.encode(request))
    return f"{settings.retrain_project}, entry point {settings.retrain_entry_point}, runs; its log is {log}"


def retrain(target: Target, request: ActionRequest) -> str:
    """Run the project and register its model as a new version of the revision's; returns that version.

    Raises:
        MonitorActionFailed: it failed, or it logged no model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    settings = ActionSpec.model_validate(request.settings)
    record = target.require(request.deployment)
    name = _model_name(record, request.revision)
    _use_servers(record, request.revision)
    client = mlflow.MlflowClient()
    before = {version.version for version in client.search_model_versions(f"name='{name}'")}
    try:
        run = mlflow.projects.run(
            settings.retrain_project,
            entry_point=settings.retrain_entry_point,
            parameters=dict(settings.retrain_parameters),
            env_manager=settings.retrain_env,
            experiment_name=f"{request.deployment}-retraining",
        )
        made = [
            version
            for version in client.search_model_versions(f"name='{name}'")
            if version.version not in before and _belongs(client, version.run_id or "", run.run_id)
        ]
        version = made[0] if made else mlflow.register_model(_logged(mlflow, run.run_id), name)
        cause = f"{request.deployment} revision {request.revision}"
        client.set_model_version_tag(name, version.version, "retrained_for", cause)
    except MlflowException as error:
        raise MonitorActionFailed("retrain", _line(error)) from error
    return str(version.version)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _belongs(client: Any, run_id: str, project_run: str) -> bool:
    """Whether a version comes from the project's run or from one below it."""
    while run_id and run_id != project_run:
        run_id = client.get_run(run_id).data.tags.get("mlflow.parentRunId", "")
    return bool(run_id)


def _logged(mlflow: Any, run_id: str) -> str:
    """URI of the model that a run logged last.

    Raises:
        MonitorActionFailed: it logged none.
    """
    outputs = mlflow.get_run(run_id).outputs
    models = outputs.model_outputs if outputs else []
    if not models:
        raise MonitorActionFailed("retrain", f"the run {run_id} of the project logged no model")
    return f"models:/{models[-1].model_id}"


def _model_name(record: DeploymentRecord, number: int) -> str:
    try:
        name = record.revision(number).model_name
    except KeyError:
        name = record.stable.model_name
    if not name:
        raise MonitorActionFailed("retrain", f"revision {number} does not serve a registered model")
    return name


def _use_servers(record: DeploymentRecord, number: int) -> None:
    """Have the project log and register where the revision's model is from; it starts with this environment."""
    import mlflow

    known = {each.number: each for each in record.revisions}
    revision = known.get(number, record.stable)
    if revision.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = revision.tracking_uri
        mlflow.set_tracking_uri(revision.tracking_uri)
    if revision.registry_uri:
        os.environ["MLFLOW_REGISTRY_URI"] = revision.registry_uri
        mlflow.set_registry_uri(revision.registry_uri)


def _file(target: Target, deployment: str, ending: str) -> Path:
    folder = state_home() / "retraining"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{target.name}-{deployment}.{ending}"


def _retrain_and_note(target: Target, request: ActionRequest) -> None:
    outcome: Outcome = "done"
    try:
        with locked(_file(target, request.deployment, "lock"), wait=False, owner=request.id):
            version = retrain(target, request)
        reason = f"version {version} of the model is registered; {request.reason}"
    except LockHeldError as error:
        if error.owner == request.id:
            return
        outcome, reason = "failed", f"the training {error.owner} runs already; {request.reason}"
    except DeployError as error:
        outcome, reason = "failed", f"{error.text}; {request.reason}"
    except Exception as error:  # noqa: BLE001 - a project fails in any way, and the history has to tell it
        _LOG.exception("the training failed")
        outcome, reason = "failed", f"{type(error).__name__}: {_line(error)}; {request.reason}"
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            note(target, request.deployment, "retrain", outcome, request.revision, reason)
            return
        except DeploymentBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_POLL_SECONDS)


def main() -> int:
    """Read a request from standard input, carry it out, print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--retrain", action="store_true", help="train now, and note how it ended")
    options = parser.parse_args()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ActionRequest)
    try:
        target = open_target(options.target)
        if options.retrain:
            _retrain_and_note(target, request)
        else:
            sys.stdout.write(carry_out(target, request) + "\n")
    except DeployError as error:
        sys.stderr.write(f"{error.text}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
