"""The scoring server of a bundle on a free port of this machine, for as long as gates ask it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import requests

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import PredictionError, StartFailed
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets.network import free_port

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_ASK_SECONDS = 120.0
_TAIL_BYTES = 2000


@dataclass(frozen=True)
class GateServer:
    """A server that is ready.

    Attributes:
        url: its address.
        ready_seconds: how long it took from its start until it said ready.
        session: keeps its connection open from request to request.
    """

    url: str
    ready_seconds: float
    session: requests.Session

    def ask(self, body: bytes) -> Any:
        """What the server predicts for a body of /invocations.

        Raises:
            PredictionError: it refuses, fails or does not answer.
        """
        return _predictions(self.post(body))

    def post(self, body: bytes) -> requests.Response:
        """The answer to a body of /invocations, whatever its status.

        Raises:
            PredictionError: there is none.
        """
        headers = {"Content-Type": "application/json"}
        try:
            return self.session.post(
                f"{self.url}/invocations", data=body, headers=headers, timeout=_ASK_SECONDS
            )
        except requests.RequestException as error:
            raise PredictionError("The bundle's server does not answer", why=str(error)) from error


def _predictions(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise PredictionError(
            f"The bundle's server answers with status {response.status_code}", why=response.text[:500]
        )
    answer = response.json()
    if not isinstance(answer, dict) or "predictions" not in answer:
        raise PredictionError("The bundle's server answers without predictions", why=response.text[:200])
    return answer["predictions"]


@contextlib.contextmanager
def serving(bundle: Bundle, settings: ServingSettings, *, ready_seconds: float) -> Iterator[GateServer]:
    """Start the server that a deployment would run, in a process of its own, and stop it at the end.

    Args:
        settings: of the server; who may call and TLS are left out, since only this process calls it.
        ready_seconds: how long it may take to become ready.

    Raises:
        StartFailed: it ends, or is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder, requests.Session() as session:
        # A proxy of the environment has no business between this machine and itself.
        session.trust_env = False
        identity = {"deployment": "gate", "revision": 1, "serving": _private(settings)}
        file, log = Path(folder) / "settings.json", Path(folder) / "log"
        file.write_bytes(msgspec.json.encode(identity))
        port = free_port(_HOST, ())
        command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
        command += ["--host", _HOST, "--port", str(port), "--settings", str(file)]
        command += ["--listen-when-ready", "--die-with-parent"]
        begun = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://{_HOST}:{port}"
            _wait(process, session, url, ready_seconds, log)
            yield GateServer(url=url, ready_seconds=time.monotonic() - begun, session=session)
        finally:
            _stop(process)


def _private(settings: ServingSettings) -> dict[str, Any]:
    """The settings without callers' secrets, gRPC and the wait for clients that are not there."""
    fields: dict[str, Any] = msgspec.to_builtins(settings)
    open_ = ("auth", "auth_file", "tls_cert", "tls_key", "tls_client_ca", "grpc", "grpc_port")
    kept = {key: value for key, value in fields.items() if key not in open_}
    return {**kept, "drain_seconds": 1.0, "drain_delay_seconds": 0.0, "page": False}


def _wait(
    process: subprocess.Popen[bytes], session: requests.Session, url: str, seconds: float, log: Path
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = process.poll()
        if status is not None:
            raise StartFailed("gate", 1, f"its server ended with status {status}", _tail(log))
        with contextlib.suppress(requests.RequestException):
            if session.get(f"{url}/ping", timeout=5).status_code == 200:
                return
        time.sleep(_POLL_SECONDS)
    raise StartFailed("gate", 1, f"its server was not ready within {seconds:g} s", _tail(log))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").splitlines()
    return " | ".join(line.strip() for line in lines[-5:])
