"""Target `local`: revisions as supervised processes of this machine, state in one folder.

Layout of the state folder (`MLFLOW_DEPLOY_HOME`, by default in the user's state directory)::

    bundles/sha256-.../              the bundles of all deployments
    local/supervisord.conf, ...      the process supervisor
    local/programs/NAME.r1.conf      one file per process
    local/deployments/NAME/          deployment.json (the record), port, r1.json (settings), logs/r1.log
    local/locks/NAME.lock            held by the command that changes the deployment

Revisions listen on the deployment's own port. A new one opens it only when it is ready and then shares it
with the old one until that is stopped, so an update has no gap; weights other than 100 need a gateway.
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
    PortInUse,
    StartFailed,
    StateWriteFailed,
    Unsupported,
)
from mlflow_deploy.files import LockHeldError, locked, write_atomic
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets.base import (
    Capability,
    DeploymentRecord,
    RevisionRecord,
    RevisionState,
    RevisionStatus,
    Target,
)
from mlflow_deploy.targets.network import answers, free_port, is_free, listens
from mlflow_deploy.targets.supervisor import ProcessState, Program, Supervisor

# Below the kernel's range for outgoing connections, so that nothing takes a deployment's port while it is down.
_PORTS = range(8500, 9500)
_POLL_SECONDS = 0.05
_RECORD = "deployment.json"
_TAIL_LINES = 5


class LocalTarget(Target):
    """Revisions as supervised processes of this machine."""

    name = "local"
    capabilities = frozenset({Capability.DURABLE, Capability.RESTARTS})

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or state_home()
        self._folder = self.home / "local"
        self._deployments = self._folder / "deployments"
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
        for program in self.supervisor.program_names():
            if program.rpartition(".r")[0] == name:
                self.supervisor.remove(program)
        folder = self._deployments / name
        if folder.exists():
            # Renamed first, so that a kill in the middle leaves no half of a deployment under its name.
            trash = self._make(self._folder / "trash") / f"{name}.{os.getpid()}.{time.time_ns()}"
            folder.rename(trash)
        shutil.rmtree(self._folder / "trash", ignore_errors=True)

    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        with locked(self._make(self._folder) / "ports.lock", wait=True):
            taken = {self._reserved_port(other) for other in self.names() if other != name}
            if port is not None:
                if port in taken or not is_free(host, port):
                    raise PortInUse(host, port)
            else:
                port = free_port(host, [number for number in _PORTS if number not in taken])
            folder = self._make(self._deployments / name)
            self._write(folder / "port", f"{port}\n".encode())
            return port

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
        return _status(number, process, ready=_is_ready(process, record, record.revision(number)))

    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        wanted = [number for number, weight in record.weights.items() if weight > 0]
        if len(wanted) > 1:
            raise Unsupported(
                self.name, "sharing traffic between revisions without a gateway", "Give one revision 100 %"
            )
        for number in wanted:
            self._run(record, record.revision(number), bundles[number])
        kept = {_program_name(record.name, number) for number in wanted}
        for program in self.supervisor.program_names():
            if program.rpartition(".r")[0] == record.name and program not in kept:
                self.supervisor.remove(program)

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
        serving = msgspec.convert(revision.spec.get("serving", {}), ServingSettings)
        identity = {"deployment": record.name, "revision": revision.number, "serving": serving}
        self._write(settings, msgspec.json.format(msgspec.json.encode(identity, order="sorted")) + b"\n")
        command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
        command += ["--host", record.host, "--port", str(record.port), "--settings", str(settings)]
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
            if _is_ready(process, record, revision):
                return _status(revision.number, process, ready=True)
            if time.monotonic() > deadline:
                raise StartFailed(
                    record.name,
                    revision.number,
                    f"it was not ready within {limit:g} s",
                    self._tail(record.name, revision.number),
                )
            time.sleep(_POLL_SECONDS)

    def _log(self, name: str, number: int) -> Path:
        return self._deployments / name / "logs" / f"r{number}.log"

    def _tail(self, name: str, number: int) -> str:
        with contextlib.suppress(FileNotFoundError):
            lines = self._log(name, number).read_text(encoding="utf-8", errors="replace").splitlines()
            return " | ".join(line.strip() for line in lines[-_TAIL_LINES:])
        return ""

    def _reserved_port(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._deployments / name / "port").read_text())
        return 0

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


def _is_ready(process: ProcessState, record: DeploymentRecord, revision: RevisionRecord) -> bool:
    """Whether a revision's own process accepts requests.

    It opens the port only when it is ready. Another revision may share the port, so an answer alone would
    not tell which of them is.
    """
    if not process.pid or not listens(process.pid, record.port):
        return False
    serving = revision.spec.get("serving", {})
    if serving.get("tls_client_ca"):
        return True  # It would not answer a caller without a certificate.
    return answers(record.host, record.port, tls=bool(serving.get("tls_cert")))


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
