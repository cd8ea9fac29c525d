"""Keeps a process on this machine that carries out what the monitor container of a deployment may not."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy.targets.base_monitor import MonitorOrder, order_of
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.targets.supervisor import Program, Supervisor

Progress = Callable[[str], None]

HAND = "mlflow_deploy.lifecycle.monitor_hand"
"""Started by its name, because it knows more than targets do."""
_STOP_SECONDS = 60.0
_PASSED_ON = (
    "DOCKER_",
    "MLFLOW_DEPLOY_DOCKER_",
    "MLFLOW_DEPLOY_IMAGE_",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
)
_UNFIT = re.compile(r'["\n]|://[^/@]*:[^/@]*@')
"""What supervisord's file cannot hold, and URLs with a password, which no file shall hold."""


def attach_hand(home: Path, names: Names, record: DeploymentRecord, progress: Progress) -> None:
    """Start the process where a monitor's action needs one. It stays until the deployment is removed.

    It may be the one that calls this, in the middle of a rollback: it is never stopped here.

    Raises:
        SupervisorError: the process supervisor does not answer.
    """
    order = order_of(record, "docker")
    if order is None or not _needed(order):
        return
    program = _program(names, record.name)
    supervisor = Supervisor(home / "docker")
    if program in supervisor.program_names() and supervisor.is_running():
        return
    log = home / "docker" / "logs" / f"{program}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    supervisor.add(
        Program(
            name=program,
            command=(sys.executable, "-m", HAND, record.name, "--target", "docker"),
            log=log,
            stop_seconds=_STOP_SECONDS,
            environment=_environment(home, progress),
        )
    )


def remove_hand(home: Path, names: Names, name: str) -> None:
    """Stop the process of a deployment that is removed."""
    Supervisor(home / "docker").remove(_program(names, name))


def _program(names: Names, name: str) -> str:
    return f"{names.monitor(name)}-hand"


def _environment(home: Path, progress: Progress) -> dict[str, str]:
    """What the process gets of this one's environment: another one may have started its supervisor."""
    given = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    unfit = sorted(key for key, value in given.items() if _UNFIT.search(value))
    if unfit:
        progress(f"The process that acts for the monitors does not get {', '.join(unfit)}")
    fit = {key: value for key, value in sorted(given.items()) if key not in unfit}
    return {**fit, "MLFLOW_DEPLOY_HOME": str(home)}


def _needed(order: MonitorOrder) -> bool:
    """Whether something may follow an alert that only this machine can do."""
    for revision in order.revisions:
        monitor = revision.settings.get("monitor") or {}
        wanted = monitor.get("action") or {}
        if {*wanted.get("drift", ()), *wanted.get("performance", ())} - {"notify"}:
            return True
        told = monitor.get("alert") or {}
        # What was told belongs into the deployment's history.
        if any(told.get(channel) for channel in ("webhook", "slack", "email", "command")):
            return True
    return False
