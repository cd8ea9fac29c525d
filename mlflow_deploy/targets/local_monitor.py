"""The monitor job of a local deployment: a supervised process beside its revisions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlflow_deploy.bundle import PROFILE
from mlflow_deploy.errors import MonitorFailed, StateWriteFailed
from mlflow_deploy.files import write_atomic
from mlflow_deploy.targets.base_monitor import JOB, MonitorOrder, order_of, order_path, profile_path
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.supervisor import Program, Supervisor

DATA = "data"
"""Folder in a deployment's own with what was captured, its labels and what its monitors found."""
_STOP_SECONDS = 10
_ASK_SECONDS = 3600
REFUSED = 2
"""Exit status of the job for what a person can put right; its words are on standard output as JSON."""


def program_name(name: str) -> str:
    """Name of the job's process."""
    return f"{name}.monitor"


def attach_monitor(supervisor: Supervisor, record: DeploymentRecord, folder: Path, home: Path) -> None:
    """Start the job of a deployment, tell the running one what to do, or stop it when nothing is monitored.

    Args:
        folder: the deployment's own.
        home: the state folder.

    Raises:
        StateWriteFailed: the order cannot be written.
        SupervisorError: the process supervisor does not answer.
    """
    order, name = order_of(record, "local"), program_name(record.name)
    if order is None:
        if name in supervisor.program_names():
            supervisor.remove(name)
        return
    data = folder / DATA
    try:
        write_order(data, order, home / "bundles")
        (folder / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StateWriteFailed(data, error.strerror or str(error)) from error
    supervisor.add(
        Program(
            name=name,
            command=(sys.executable, "-m", JOB, "watch", str(data), "--die-with-parent"),
            log=folder / "logs" / "monitor.log",
            stop_seconds=_STOP_SECONDS,
            environment={"MLFLOW_DEPLOY_HOME": str(home)},
        )
    )


def write_order(data: Path, order: MonitorOrder, bundles: Path) -> None:
    """Write the order, and the reference profile of each revision, into a data folder."""
    for revision in order.revisions:
        source, copy = bundles / revision.bundle / PROFILE, profile_path(data, revision.number)
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if source.exists() and not copy.exists():
            # The bundle may be pruned while the monitor still looks at its rows.
            write_atomic(copy, source.read_bytes())
    path, text = order_path(data), msgspec.json.encode(order)
    if not path.exists() or path.read_bytes() != text:
        write_atomic(path, text)


def ask_monitor(record: DeploymentRecord, folder: Path, arguments: Sequence[str]) -> bytes:
    """Run a command of the job in a process of its own; returns what it printed.

    Raises:
        MonitorFailed: the command failed.
    """
    command, *options = arguments
    done = subprocess.run(
        [sys.executable, "-m", JOB, command, str(folder / DATA), *options],
        capture_output=True,
        timeout=_ASK_SECONDS,
        check=False,
    )
    return answer(record.name, done.returncode, done.stdout, done.stderr)


def answer(name: str, status: int, printed: bytes, errors: bytes) -> bytes:
    """What a command of the job printed.

    Raises:
        MonitorFailed: it failed.
    """
    if status == 0:
        return printed
    if status == REFUSED and printed.startswith(b"{"):
        told = json.loads(printed)
        why = ". ".join(part for part in (told["error"].rstrip("."), told["why"]) if part)
        raise MonitorFailed(name, why, told["hint"])
    lines = errors.decode(errors="replace").strip().splitlines()
    raise MonitorFailed(name, lines[-1] if lines else f"its process ended with status {status}")


def monitor_state(supervisor: Supervisor, record: DeploymentRecord) -> str:
    """How the job is: `running`, `off` when no monitor is attached, or why it does not run."""
    if order_of(record, "local") is None:
        return "off"
    if not supervisor.is_running():
        return "not running: the process supervisor does not run; `mlflow-deploy up` starts it"
    process = supervisor.state(program_name(record.name))
    if process is None:
        return "not running: it is not under supervision; `mlflow-deploy up` starts it"
    if process.state in ("RUNNING", "STARTING"):
        return "running"
    return f"not running: its process is in state {process.state}"
