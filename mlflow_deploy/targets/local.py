"""Target `local`: revisions as supervised processes of this machine, state in one folder.

Layout of the state folder (`MLFLOW_DEPLOY_HOME`, by default in the user's state directory)::

    bundles/sha256-.../              the bundles of all deployments
    local/supervisord.conf, ...      the process supervisor
    local/programs/NAME.r1.conf      one file per process
    local/deployments/NAME/          deployment.json (the record), ports.json, r1.json (settings), logs/r1.log
    local/deployments/NAME/gateway/  configuration of its Envoy, when it has one
    local/locks/NAME.lock            held by the command that changes the deployment

With a gateway, Envoy listens on the deployment's port and revisions on ports of their own. Without one,
revisions listen on the deployment's port themselves: a new one opens it only when it is ready and then
shares it with the old one until that is stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import (
    DeploymentBusy,
    StartFailed,
    StateWriteFailed,
    Unsupported,
)
from mlflow_deploy.files import LockHeldError, locked, write_atomic
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets.base import (
    Capability,
    DeploymentRecord,
    RevisionRecord,
    RevisionState,
    RevisionStatus,
    Target,
)
from mlflow_deploy.targets.local_gateway import (
    apply_gateway,
    behind_gateway,
    drain_gateway,
    gateway_ready,
    gateway_stats,
)
from mlflow_deploy.targets.local_ports import PortBook
from mlflow_deploy.targets.network import answers, listens
from mlflow_deploy.targets.supervisor import ProcessState, Program, Supervisor

_POLL_SECONDS = 0.05
_RECORD = "deployment.json"
_TAIL_LINES = 5


class LocalTarget(Target):
    """Revisions as supervised processes of this machine."""

    name = "local"
    capabilities = frozenset({Capability.DURABLE, Capability.RESTARTS, Capability.TRAFFIC_SPLIT})

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or state_home()
        self._folder = self.home / "local"
        self._deployments = self._folder / "deployments"
        self._ports = PortBook(self._folder)
        self.supervisor = Supervisor(self._folder)

    # --- records ---

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        path = self._make(self._folder / "locks") / f"{name}.lock"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False, owner=f"process {os.getpid()}"))
            except LockHeldError as error:
                raise DeploymentBusy(name, error.owner) from error
            except OSError as error:
                raise StateWriteFailed(path, error.strerror or str(error)) from error
            yield

    def names(self) -> list[str]:
        if not self._deployments.is_dir():
            return []
        return sorted(path.name for path in self._deployments.iterdir() if path.is_dir())

    def read_record(self, name: str) -> DeploymentRecord | None:
        path = self._deployments / name / _RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=DeploymentRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise StateWriteFailed(path, f"the record cannot be read: {error}") from error

    def write_record(self, record: DeploymentRecord) -> None:
        folder = self._make(self._deployments / record.name)
        text = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
        self._write(folder / _RECORD, text)

    def remove(self, name: str) -> None:
        if self._gateway(name).is_dir():
            drain_gateway(self._gateway(name))
        # The gateway's name sorts first, so that no request comes for a revision that is gone.
        for program in self.supervisor.program_names():
            if program.partition(".")[0] == name:
                self.supervisor.remove(program)
        folder = self._deployments / name
        if folder.exists():
            # Renamed first, so that a kill in the middle leaves no half of a deployment under its name.
            trash = self._make(self._folder / "trash") / f"{name}.{os.getpid()}.{time.time_ns()}"
            folder.rename(trash)
        shutil.rmtree(self._folder / "trash", ignore_errors=True)

    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        return self._ports.port(name, "public", host, port)

    # --- processes ---

    def start(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> RevisionStatus:
        program = _program_name(record.name, revision.number)
        try:
            self._run(record, revision, bundle)
            return self._wait_ready(record, revision)
        except BaseException:
            self.supervisor.remove(program)
            raise

    def stop(self, name: str, number: int) -> None:
        self.supervisor.remove(_program_name(name, number))

    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        program = _program_name(record.name, number)
        if program not in self.supervisor.program_names():
            return RevisionStatus(number=number, state="stopped")
        if not self.supervisor.is_running():
            return RevisionStatus(
                number=number,
                state="unavailable",
                detail="the process supervisor does not run; `mlflow-deploy up` starts it",
            )
        process = self.supervisor.state(program)
        if process is None:
            return RevisionStatus(
                number=number,
                state="unavailable",
                detail="it is not under supervision; `mlflow-deploy up` starts it",
            )
        if record.gateway != "none" and not gateway_ready(self._gateway(record.name)):
            return RevisionStatus(
                number=number, state="unavailable", pid=process.pid, detail="its gateway does not answer"
            )
        return _status(number, process, ready=self._is_ready(process, record, record.revision(number)))

    def can_split(self, record: DeploymentRecord) -> bool:
        return record.gateway != "none"

    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        wanted = record.wanted
        if len(record.weights) > 1 and not self.can_split(record):
            raise Unsupported(
                self.name,
                "sharing traffic between revisions without a gateway",
                "Create the deployment with -C gateway=envoy, or give one revision 100 %",
            )
        for number in wanted:
            self._run(record, record.revision(number), bundles[number])
        if self.can_split(record):
            addresses = {number: self._address(record, record.revision(number)) for number in wanted}
            apply_gateway(self.supervisor, record, self._gateway(record.name), addresses)
        kept = {_program_name(record.name, number) for number in wanted}
        for program in self.supervisor.program_names():
            if program.startswith(f"{record.name}.r") and program not in kept:
                self.supervisor.remove(program)

    def grpc_address(self, record: DeploymentRecord) -> str:
        if not record.stable.spec.get("serving", {}).get("grpc"):
            return ""
        port = record.port if self.can_split(record) else self._grpc_port(record)
        return f"{record.host}:{port}"

    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        if not self.can_split(record):
            return {}
        return gateway_stats(self._gateway(record.name))

    def control(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._deployments / name / "control").read_text().strip()
        return ""

    def set_control(self, name: str, word: str) -> None:
        self._write(self._deployments / name / "control", word.encode())

    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        path = self._log(name, number)
        for old in sorted(path.parent.glob(f"{path.name}.*"), reverse=True):
            yield from old.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from _lines(path, follow=follow)

    # --- details ---

    def _run(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> None:
        """Put the revision under supervision; nothing happens when it already is."""
        folder = self._make(self._deployments / record.name)
        self._make(folder / "logs")
        settings = folder / f"r{revision.number}.json"
        host, port, given = record.host, record.port, revision.spec.get("serving", {})
        if self.can_split(record):
            port, grpc_port = self._address(record, revision)
            host, given = "127.0.0.1", behind_gateway(given, grpc_port)
        elif given.get("grpc"):
            given = {**given, "grpc_port": self._grpc_port(record)}
        serving = msgspec.convert(given, ServingSettings)
        identity = {"deployment": record.name, "revision": revision.number, "serving": serving}
        self._write(settings, msgspec.json.format(msgspec.json.encode(identity, order="sorted")) + b"\n")
        command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
        command += ["--host", host, "--port", str(port), "--settings", str(settings)]
        command += ["--listen-when-ready", "--die-with-parent"]
        self.supervisor.add(
            Program(
                name=_program_name(record.name, revision.number),
                command=tuple(command),
                log=self._log(record.name, revision.number),
                # Room for the drain itself and for the server's own clean-up after it.
                stop_seconds=serving.drain_seconds + 5,
            )
        )

    def _wait_ready(self, record: DeploymentRecord, revision: RevisionRecord) -> RevisionStatus:
        program = _program_name(record.name, revision.number)
        limit = float(revision.spec.get("ready_seconds", 120.0))
        deadline = time.monotonic() + limit
        while True:
            process = self.supervisor.state(program)
            if process is None or process.state in ("BACKOFF", "EXITED", "FATAL"):
                why = process.error if process and process.error else "its process ended"
                raise StartFailed(record.name, revision.number, why, self._tail(record.name, revision.number))
            if self._is_ready(process, record, revision):
                return _status(revision.number, process, ready=True)
            if time.monotonic() > deadline:
                raise StartFailed(
                    record.name,
                    revision.number,
                    f"it was not ready within {limit:g} s",
                    self._tail(record.name, revision.number),
                )
            time.sleep(_POLL_SECONDS)

    def _is_ready(self, process: ProcessState, record: DeploymentRecord, revision: RevisionRecord) -> bool:
        """Whether a revision's own process accepts requests.

        It opens the port only when it is ready. Another revision may share the port, so an answer alone
        would not tell which of them is.
        """
        serving = revision.spec.get("serving", {})
        tls = bool(serving.get("tls_cert"))
        host, port = record.host, record.port
        if self.can_split(record):
            (port, _), host, tls = self._address(record, revision), "127.0.0.1", False
        if not process.pid or not listens(process.pid, port):
            return False
        if tls and serving.get("tls_client_ca"):
            return True  # It would not answer a caller without a certificate.
        return answers(host, port, tls=tls)

    def _address(self, record: DeploymentRecord, revision: RevisionRecord) -> tuple[int, int]:
        """HTTP port and gRPC port (0 for none) of a revision's process behind the gateway."""
        label = f"r{revision.number}"
        grpc = revision.spec.get("serving", {}).get("grpc")
        return (
            self._ports.port(record.name, label, "127.0.0.1"),
            self._ports.port(record.name, f"{label}-grpc", "127.0.0.1") if grpc else 0,
        )

    def _grpc_port(self, record: DeploymentRecord) -> int:
        """Port of gRPC without a gateway: the wanted one, or one that is reserved for the deployment."""
        wanted = record.stable.spec.get("serving", {}).get("grpc_port") or None
        return self._ports.port(record.name, "grpc", record.host, wanted)

    def _gateway(self, name: str) -> Path:
        return self._deployments / name / "gateway"

    def _log(self, name: str, number: int) -> Path:
        return self._deployments / name / "logs" / f"r{number}.log"

    def _tail(self, name: str, number: int) -> str:
        with contextlib.suppress(FileNotFoundError):
            lines = self._log(name, number).read_text(encoding="utf-8", errors="replace").splitlines()
            return " | ".join(line.strip() for line in lines[-_TAIL_LINES:])
        return ""

    def _make(self, folder: Path) -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateWriteFailed(folder, error.strerror or str(error)) from error
        return folder

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data)
        except OSError as error:
            raise StateWriteFailed(path, error.strerror or str(error)) from error


def _program_name(name: str, number: int) -> str:
    return f"{name}.r{number}"


def _status(number: int, process: ProcessState, *, ready: bool) -> RevisionStatus:
    state: RevisionState
    if ready:
        state, detail = "ready", ""
    elif process.state == "FATAL" or (process.state == "EXITED"):
        state, detail = "failed", process.error or f"its process ended with status {process.exit_status}"
    elif process.state in ("STARTING", "RUNNING"):
        state, detail = "unavailable", "its process runs but does not answer yet"
    else:
        state, detail = "unavailable", process.error or f"its process is in state {process.state}"
    return RevisionStatus(number=number, state=state, pid=process.pid, since=process.started, detail=detail)


def _lines(path: Path, *, follow: bool) -> Iterator[str]:
    """Lines of a file that may be rotated away and begun anew while it is followed."""
    rest = ""
    file = None
    try:
        while True:
            if file is None:
                with contextlib.suppress(FileNotFoundError):
                    file = path.open(encoding="utf-8", errors="replace")
            chunk = file.read() if file else ""
            if chunk:
                *whole, rest = (rest + chunk).split("\n")
                yield from whole
                continue
            if not follow:
                break
            if file and (not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino):
                file.close()
                file = None
                continue
            time.sleep(0.2)
    finally:
        if file:
            file.close()
    if rest:
        yield rest
