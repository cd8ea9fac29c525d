"""Target `local`: revisions as supervised processes of this machine, state in one folder.

Layout of the state folder (`MLFLOW_DEPLOY_HOME`, by default in the user's state directory)::

    bundles/sha256-.../              the bundles of all deployments
    local/supervisord.conf, ...      the process supervisor
    local/programs/NAME.r1-1.conf    one file per process: revision 1, replica 1
    local/deployments/NAME/          deployment.json (the record), ports.json, r1-1.json, logs/r1-1.log
    local/deployments/NAME/gateway/  configuration of its Envoy, when it has one
    local/archive/NAME/KEY.json      release records and what belongs to them; stays when NAME is removed
    local/locks/NAME.lock            held by the command that changes the deployment

With a gateway, Envoy listens on the deployment's port and each replica of a revision on a port of its own.
Without one, a revision is one process that listens on the deployment's port itself: a new one opens it only
when it is ready and then shares it with the old one until that is stopped.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import (
    DeploymentBusy,
    MissingExtra,
    StartFailed,
    StateWriteFailed,
)
from mlflow_deploy.files import LockHeldError, locked, write_atomic
from mlflow_deploy.gateway.binary import envoy_binary
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.serving.ask import ask
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord, Orphan, RevisionRecord, RevisionStatus
from mlflow_deploy.targets.folder_archive import FolderArchive
from mlflow_deploy.targets.local_gateway import (
    apply_gateway,
    behind_gateway,
    drain_gateway,
    gateway_ready,
    gateway_stats,
)
from mlflow_deploy.targets.local_gateway import (
    program_name as gateway_program,
)
from mlflow_deploy.targets.local_logs import read_logs
from mlflow_deploy.targets.local_monitor import DATA, ask_monitor, attach_monitor, monitor_state
from mlflow_deploy.targets.local_monitor import program_name as monitor_program
from mlflow_deploy.targets.local_orphans import find_orphans, forget_files, left_names, remove_orphan
from mlflow_deploy.targets.local_ports import PortBook
from mlflow_deploy.targets.network import answers, listens
from mlflow_deploy.targets.replicas import (
    ReplicaStatus,
    captured,
    check_gateway_settings,
    combined,
    label_file,
    wait_until_ready,
)
from mlflow_deploy.targets.supervisor import ProcessState, Program, Supervisor

_POLL_SECONDS = 0.05
_RECORD = "deployment.json"
_TAIL_LINES = 5


class LocalTarget(Target):
    """Revisions as supervised processes of this machine."""

    name = "local"
    capabilities = frozenset(
        {
            Capability.DURABLE,
            Capability.RESTARTS,
            Capability.TRAFFIC_SPLIT,
            Capability.RECORDING,
            Capability.MONITORS,
        }
    )

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or state_home()
        self._folder = self.home / "local"
        self._deployments = self._folder / "deployments"
        self._ports = PortBook(self._folder)
        self._archive = FolderArchive(self._folder / "archive")
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
        # The gateway first, so that no request comes for a revision that is gone.
        self.supervisor.remove(gateway_program(name))
        self.supervisor.remove(*self._programs(name))
        folder = self._deployments / name
        if folder.exists():
            # Renamed first, so that a kill in the middle leaves no half of a deployment under its name.
            trash = self._make(self._folder / "trash") / f"{name}.{os.getpid()}.{time.time_ns()}"
            folder.rename(trash)
        shutil.rmtree(self._folder / "trash", ignore_errors=True)

    def read_archive(self, name: str, *keys: str) -> dict[str, bytes]:
        return self._archive.read(name, *keys)

    def write_archive(self, name: str, key: str, document: bytes) -> None:
        self._archive.write(name, key, document)

    def archive_names(self) -> list[str]:
        return self._archive.names()

    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        return self._ports.port(name, "public", host, port)

    # --- processes ---

    def start(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> RevisionStatus:
        check_gateway_settings(record.name, revision.settings, record.gateway)
        try:
            self._run(record, revision, bundle)
            replicas = self._replicas(record, revision.number)
            for replica in replicas:
                self._wait_ready(record, revision, replica)
            status = [self._replica_status(record, revision, replica) for replica in replicas]
            return combined(revision.number, len(replicas), status, gateway_answers=True)
        except BaseException:
            self.stop(record.name, revision.number)
            raise

    def stop(self, name: str, number: int) -> None:
        self.supervisor.remove(*self._programs(name, number))

    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        if not self._programs(record.name, number):
            return RevisionStatus(number=number, state="stopped")
        if not self.supervisor.is_running():
            return RevisionStatus(
                number=number,
                state="unavailable",
                detail="the process supervisor does not run; `mlflow-deploy up` starts it",
            )
        revision = record.revision(number)
        replicas = self._replicas(record, number)
        found = [self._replica_status(record, revision, replica) for replica in replicas]
        # A candidate is ready before there is a gateway that could answer.
        behind = self.can_split(record) and bool(record.weights)
        answers_ = not behind or gateway_ready(self._gateway(record.name))
        return combined(number, len(replicas), found, gateway_answers=answers_)

    def lacks_gateway(self) -> str:
        try:
            envoy_binary()
        except MissingExtra as error:
            return error.text
        return ""

    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        self.check_split(record, record.weights)
        wanted = [*record.wanted, *(n for n in record.kept if self._programs(record.name, n))]
        started = []
        for number in wanted:
            if number in bundles:
                started += self._run(record, record.revision(number), bundles[number])
        shall_run = {
            _program_name(record.name, number, replica)
            for number in wanted
            for replica in self._replicas(record, number)
        }
        others = set(self._programs(record.name)) - shall_run
        others -= {gateway_program(record.name), monitor_program(record.name)}
        # What serves now is not given up for what may never be ready.
        for revision, replica in started:
            self._wait_ready(record, revision, replica)
        if self.can_split(record):
            addresses = {number: self._addresses(record, record.revision(number)) for number in wanted}
            apply_gateway(self.supervisor, record, self._gateway(record.name), addresses)
        self.supervisor.remove(*sorted(others))
        self._ports.forget(record.name, {*wanted, record.candidate})
        attach_monitor(self.supervisor, record, self._deployments / record.name, self.home)

    def grpc_address(self, record: DeploymentRecord) -> str:
        if not record.stable.settings.serving.grpc:
            return ""
        port = record.port if self.can_split(record) else self._grpc_port(record)
        return f"{record.host}:{port}"

    def scrape_addresses(self, record: DeploymentRecord) -> dict[int, tuple[str, ...]]:
        host = "127.0.0.1" if self.can_split(record) else record.host
        return {
            number: tuple(f"{host}:{port}" for port, _ in self._addresses(record, record.revision(number)))
            for number in (*record.wanted, *record.kept)
        }

    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        if not self.can_split(record):
            return {}
        return gateway_stats(self._gateway(record.name))

    def ask(self, record: DeploymentRecord, number: int, path: str, order: bytes) -> dict[str, bytes]:
        if not self.can_split(record):
            return {}
        answered = {}
        addresses = self._addresses(record, record.revision(number))
        for replica, (port, _) in enumerate(addresses, 1):
            control = _control(self._deployments / record.name / f"r{number}-{replica}.json")
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, body = ask("127.0.0.1", port, path, order, control)
                if status == http.client.OK:
                    answered[f"r{number}-{replica}"] = body
        return answered

    def add_labels(self, record: DeploymentRecord, content: bytes) -> None:
        folder = self._make(self._deployments / record.name / DATA / "labels")
        self._write(folder / label_file(), content)

    def ask_monitor(self, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        return ask_monitor(record, self._deployments / record.name, arguments)

    def monitor_state(self, record: DeploymentRecord) -> str:
        return monitor_state(self.supervisor, record)

    def control(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._deployments / name / "control").read_text().strip()
        return ""

    def set_control(self, name: str, word: str) -> None:
        self._write(self._deployments / name / "control", word.encode())

    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        folder = self._deployments / name / "logs"
        return read_logs(sorted(folder.glob(f"r{number}-*.log")), follow=follow)

    # --- what is not needed ---

    def forget(self, name: str, number: int) -> None:
        self.stop(name, number)
        forget_files(self._folder, name, number)

    def orphan_names(self) -> list[str]:
        return sorted({*self.names(), *left_names(self._folder, self.supervisor)})

    def orphans(self, name: str) -> list[Orphan]:
        return list(find_orphans(self._folder, self.supervisor, name, self.read_record(name)))

    def remove_orphan(self, orphan: Orphan) -> None:
        remove_orphan(self._folder, self.supervisor, orphan)

    # --- details ---

    def _run(
        self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle
    ) -> list[tuple[RevisionRecord, int]]:
        """Put the replicas of a revision under supervision; returns those that were not before."""
        before = self._programs(record.name, revision.number)
        folder = self._make(self._deployments / record.name)
        self._make(folder / "logs")
        addresses = self._addresses(record, revision)
        replicas = self._replicas(record, revision.number)
        for replica, (port, grpc_port) in zip(replicas, addresses, strict=True):
            host, serving = record.host, replace(revision.settings.serving, grpc_port=grpc_port)
            if self.can_split(record):
                host, serving = "127.0.0.1", behind_gateway(serving)
            settings = folder / f"r{revision.number}-{replica}.json"
            identity = {"deployment": record.name, "revision": revision.number, "serving": serving}
            identity |= {"data": str(folder / DATA), "capture": captured(revision.settings)}
            identity["control"] = _control(settings) or secrets.token_urlsafe(32)
            self._write(settings, msgspec.json.format(msgspec.json.encode(identity, order="sorted")) + b"\n")
            command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
            command += ["--host", host, "--port", str(port), "--settings", str(settings)]
            command += ["--listen-when-ready", "--die-with-parent"]
            self.supervisor.add(
                Program(
                    name=_program_name(record.name, revision.number, replica),
                    command=tuple(command),
                    log=self._log(record.name, revision.number, replica),
                    # Room for the drain itself and for the server's own clean-up after it.
                    stop_seconds=serving.drain_seconds + 5,
                )
            )
        return [
            (revision, replica)
            for replica in replicas
            if _program_name(record.name, revision.number, replica) not in before
        ]

    def _wait_ready(self, record: DeploymentRecord, revision: RevisionRecord, replica: int) -> None:
        def failure(why: str) -> StartFailed:
            tail = self._tail(record.name, revision.number, replica)
            return StartFailed(record.name, revision.number, why, tail)

        def ready() -> bool:
            process = self.supervisor.state(_program_name(record.name, revision.number, replica))
            if process is None or process.state in ("BACKOFF", "EXITED", "FATAL"):
                raise failure(process.error if process and process.error else "its process ended")
            return self._is_ready(process, record, revision, replica)

        wait_until_ready(ready, failure, limit=revision.settings.ready_seconds, poll=_POLL_SECONDS)

    def _replica_status(
        self, record: DeploymentRecord, revision: RevisionRecord, replica: int
    ) -> ReplicaStatus:
        process = self.supervisor.state(_program_name(record.name, revision.number, replica))
        if process is None:
            detail = "it is not under supervision; `mlflow-deploy up` starts it"
            return ReplicaStatus(ready=False, failed=False, pid=0, since=0.0, detail=detail)
        ready = self._is_ready(process, record, revision, replica)
        return ReplicaStatus(
            ready=ready,
            failed=process.state in ("FATAL", "EXITED"),
            pid=process.pid,
            since=process.started,
            detail="" if ready else _why_not(process),
        )

    def _is_ready(
        self, process: ProcessState, record: DeploymentRecord, revision: RevisionRecord, replica: int
    ) -> bool:
        """Whether a replica's own process accepts requests.

        It opens the port only when it is ready. Another revision may share the port, so an answer alone
        would not tell which of them is.
        """
        serving = revision.settings.serving
        host, tls = record.host, bool(serving.tls_cert)
        if self.can_split(record):
            host, tls = "127.0.0.1", False
        port = self._addresses(record, revision)[replica - 1][0]
        if not process.pid or not listens(process.pid, port):
            return False
        if tls and serving.tls_client_ca:
            return True  # It would not answer a caller without a certificate.
        return answers(host, port, tls=tls)

    def _replicas(self, record: DeploymentRecord, number: int) -> range:
        """The numbers of the replicas that a revision shall have now."""
        return range(1, record.replica_count(number) + 1)

    def _addresses(self, record: DeploymentRecord, revision: RevisionRecord) -> list[tuple[int, int]]:
        """HTTP port and gRPC port (0 for none) of each replica of a revision."""
        grpc = revision.settings.serving.grpc
        if not self.can_split(record):
            return [(record.port, self._grpc_port(record) if grpc else 0)]
        labels = [f"r{revision.number}-{replica}" for replica in self._replicas(record, revision.number)]
        return [
            (
                self._ports.port(record.name, label, "127.0.0.1"),
                self._ports.port(record.name, f"{label}-grpc", "127.0.0.1") if grpc else 0,
            )
            for label in labels
        ]

    def _programs(self, name: str, number: int = 0) -> list[str]:
        """Names of the processes of a deployment, or of the replicas of one of its revisions."""
        pattern = re.compile(rf"{name}\.r{number}(-\d+)?" if number else rf"{name}\..+")
        return [program for program in self.supervisor.program_names() if pattern.fullmatch(program)]

    def _grpc_port(self, record: DeploymentRecord) -> int:
        """Port of gRPC without a gateway: the wanted one, or one that is reserved for the deployment."""
        wanted = record.stable.settings.serving.grpc_port or None
        return self._ports.port(record.name, "grpc", record.host, wanted)

    def _gateway(self, name: str) -> Path:
        return self._deployments / name / "gateway"

    def _log(self, name: str, number: int, replica: int) -> Path:
        return self._deployments / name / "logs" / f"r{number}-{replica}.log"

    def _tail(self, name: str, number: int, replica: int) -> str:
        with contextlib.suppress(FileNotFoundError):
            lines = (
                self._log(name, number, replica).read_text(encoding="utf-8", errors="replace").splitlines()
            )
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


def _program_name(name: str, number: int, replica: int) -> str:
    return f"{name}.r{number}-{replica}"


def _control(settings: Path) -> str:
    """The secret that a replica was started with; an empty string when there is none."""
    with contextlib.suppress(FileNotFoundError):
        return str(msgspec.json.decode(settings.read_bytes()).get("control", ""))
    return ""


def _why_not(process: ProcessState) -> str:
    """Why a process accepts no requests."""
    if process.state in ("FATAL", "EXITED"):
        return process.error or f"its process ended with status {process.exit_status}"
    if process.state in ("STARTING", "RUNNING"):
        return "its process runs but does not answer yet"
    return process.error or f"its process is in state {process.state}"
