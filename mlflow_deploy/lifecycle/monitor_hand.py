"""Does for a deployment's monitors what they may not do themselves: their actions, and results for MLflow.

A container has no right over the engine that runs it. `python -m mlflow_deploy.lifecycle.monitor_hand` is what
target `docker` keeps running on the machine of whoever deployed; `mlflow-deploy monitor act` does it by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError, DeploymentNotFound
from mlflow_deploy.files import locked
from mlflow_deploy.lifecycle.monitor_actions import carry_out
from mlflow_deploy.lifecycle.monitors import land_from_here
from mlflow_deploy.monitoring.action_requests import ActionRequest
from mlflow_deploy.monitoring.claims import Settled
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord

Wait = Callable[[float], None]

_LOG = logging.getLogger("mlflow_deploy.monitoring")
_ASK_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_LAND_SECONDS = 300.0
_GONE_SECONDS = 3600.0
_BROKEN = 78
"""Exit status of a process that is not to be restarted (sysexits.h: EX_CONFIG)."""


def act_for(target: Target, record: DeploymentRecord) -> list[dict[str, Any]]:
    """Carry out the actions that the monitors of a deployment want and may not carry out themselves.

    Returns:
        action, revision, reason, done and detail of each; one that cannot be done now is tried again later.

    Raises:
        DeployError: the monitors cannot be asked.
    """
    if target.monitor_state(record) == "off":
        return []
    folder = state_home() / "monitor-hands"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = _owner()
    done = []
    # The same owner gets the same action again at once, as after a kill; two of its processes must not.
    with locked(folder / f"{target.name}-{record.name}.lock", wait=True):
        while asked := target.ask_monitor(record, ["claim", *owner]):
            requests = msgspec.json.decode(asked, type=list[ActionRequest])
            if not requests:
                break
            for request in requests:
                settled = _carried_out(target, request)
                _LOG.info("%s, %s: %s", request.action, request.phase, settled.told or settled.error)
                told = msgspec.json.encode([settled]).decode()
                target.ask_monitor(record, ["settle", "--settled", told])
                if request.phase == "do":
                    done.append(_shown(request, settled))
    return done


def watch(target: Target, name: str, *, wait: Wait = time.sleep) -> int:
    """Wait for what the monitors of a deployment want, and do it, until the deployment is gone.

    Returns:
        The exit status of a process that is not to be restarted.
    """
    told, pause, gone, land_at = "", _FIRST_PAUSE, 0.0, 0.0
    while gone < _GONE_SECONDS:
        try:
            record = target.require(name)
            try_landing = time.monotonic() >= land_at
            arguments = ["wait", "--seconds", f"{_ASK_SECONDS:g}", *_owner(), *["--results"] * try_landing]
            work = json.loads(target.ask_monitor(record, arguments))
            if work["actions"]:
                act_for(target, record)
            if work["unlogged"] and try_landing:
                report = land_from_here(target, record)
                _LOG.info("%d results were logged; %s", report["logged"], report["problem"] or "all is well")
                land_at = time.monotonic() + (_LAND_SECONDS if report["problem"] else 0.0)
            told, pause, gone = "", _FIRST_PAUSE, 0.0
        except DeployError as error:
            # The same trouble is told once; a monitor that was stopped, or an engine, may come back.
            if error.text != told:
                _LOG.warning("%s", error.text)
            told = error.text
            wait(pause)
            gone = gone + pause if isinstance(error, DeploymentNotFound) else 0.0
            pause = min(2 * pause, _LONGEST_PAUSE)
    return _BROKEN


def _owner() -> list[str]:
    return ["--owner", f"{socket.gethostname()}:{state_home()}"]


def _carried_out(target: Target, request: ActionRequest) -> Settled:
    try:
        return Settled(id=request.id, phase=request.phase, told=carry_out(target, request))
    except DeployError as error:
        return Settled(id=request.id, phase=request.phase, error=error.text)


def _shown(request: ActionRequest, settled: Settled) -> dict[str, Any]:
    return {
        "action": request.action,
        "revision": request.revision,
        "reason": request.reason,
        "done": not settled.error,
        "detail": settled.told or settled.error,
    }


def main() -> int:
    """Watch over one deployment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deployment")
    parser.add_argument("--target", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    return watch(open_target(options.target), options.deployment)


if __name__ == "__main__":
    sys.exit(main())
