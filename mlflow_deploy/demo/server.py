"""The demo's MLflow tracking server: SQLite, loopback, supervised like a deployment."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import requests

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import RegistryUnreachable
from mlflow_deploy.files import write_atomic
from mlflow_deploy.targets.network import free_port
from mlflow_deploy.targets.supervisor import Program, Supervisor

_PROGRAM = "demo-mlflow"
_PORTS = range(5000, 5100)
_READY_SECONDS = 120.0


def start(folder: Path) -> str:
    """Start the server, or find the running one, and return its URL; `wait_ready` waits for it.

    Args:
        folder: holds its database and artifacts.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    supervisor = _supervisor()
    if not (folder / "port").exists():
        write_atomic(folder / "port", str(free_port("127.0.0.1", _PORTS)).encode())
    port = _port(folder)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    supervisor.add(
        Program(
            name=_PROGRAM,
            command=tuple(command),
            log=folder / "mlflow.log",
            stop_seconds=10,
            # Without it MLflow starts eight more processes for jobs that the demo never has.
            environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stop_group=True,
        )
    )
    return f"http://127.0.0.1:{port}"


def wait_ready(folder: Path) -> None:
    """Return when the server answers.

    Raises:
        RegistryUnreachable: it does not come up.
    """
    url = f"http://127.0.0.1:{_port(folder)}"
    deadline = time.monotonic() + _READY_SECONDS
    with requests.Session() as session:
        session.trust_env = False
        while True:
            try:
                if session.get(f"{url}/health", timeout=2).ok:
                    return
            except requests.RequestException as error:
                if time.monotonic() > deadline:
                    raise RegistryUnreachable(url, f"its log is {folder / 'mlflow.log'}") from error
            time.sleep(0.1)


def stop(folder: Path) -> None:
    """Stop the server and remove its data."""
    _supervisor().remove(_PROGRAM)
    shutil.rmtree(folder, ignore_errors=True)


def _supervisor() -> Supervisor:
    return Supervisor(state_home() / "local")


def _port(folder: Path) -> int:
    return int((folder / "port").read_text())
