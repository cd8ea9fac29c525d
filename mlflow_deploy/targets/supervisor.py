"""Supervised processes of the local target, kept by supervisord: restart with back-off, log rotation.

One supervisord per state folder. Each process is one file in `programs/`, so the folder is the truth and a
supervisord that was killed comes back with the same processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import psutil

from mlflow_deploy.errors import ConfigError, StateWriteFailed, SupervisorError
from mlflow_deploy.files import locked, write_atomic

_START_SECONDS = 20.0
# A socket's path may have 107 bytes, and supervisord appends its process id while it binds.
_SOCKET_PATH_LIMIT = 95
_LOG_BYTES = 10 * 1024 * 1024
_LOG_BACKUPS = 3
EXIT_BROKEN = 78
"""Exit code of a process that would fail again: it is not restarted (sysexits.h: EX_CONFIG)."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A process to keep running.

    Attributes:
        name: unique; without ':', '/' and spaces.
        command: argument list.
        log: file for its standard output and error, rotated at 10 MiB.
        stop_seconds: how long it may drain after SIGTERM before SIGKILL.
        environment: variables added to those of supervisord.
        stop_group: send SIGTERM to its children too, for programs that would leave them running.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    stop_seconds: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop_group: bool = False


@dataclasses.dataclass(frozen=True)
class ProcessState:
    """What supervisord says of a process.

    Attributes:
        state: supervisord's word: STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, STOPPED or UNKNOWN.
        pid: 0 when it does not run.
        started: seconds since the epoch of the last start, 0 when there was none.
        exit_status: of the last run.
        error: why it could not be started.
    """

    state: str
    pid: int
    started: float
    exit_status: int
    error: str


class Supervisor:
    """Control of the supervisord of one state folder."""

    def __init__(self, folder: Path) -> None:
        for part in (" ;", " #", "\n"):
            if part in str(folder):
                raise ConfigError(
                    f"The state folder {str(folder)!r} has {part!r} in its name, which supervisord cannot take",
                    hint="Set MLFLOW_DEPLOY_HOME to another folder",
                )
        self.folder = folder
        self._programs = folder / "programs"
        self._socket = _socket_path(folder)

    # --- the daemon ---

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        try:
            with self._rpc() as rpc:
                rpc.getState()
        except SupervisorError:
            return False
        return True

    def shut_down(self) -> None:
        """Drain and stop all processes and supervisord itself; the programs come back with the next start."""
        if self._programs.is_dir():
            with locked(self.folder / "programs.lock", wait=True):
                self._shut_down()

    # --- processes ---

    def add(self, program: Program) -> None:
        """Start a process and keep it running from now on; one of the same name and command is left as it is.

        Raises:
            SupervisorError: supervisord does not answer or refuses the program.
        """
        with self._folder_errors():
            self._programs.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._folder_errors(), locked(self.folder / "programs.lock", wait=True):
            config = self._program_file(program.name)
            text = _program_config(program).encode()
            unchanged = config.exists() and config.read_bytes() == text
            write_atomic(config, text)
            self._ensure_running()
            with self._rpc() as rpc:
                rpc.reloadConfig()
                if not unchanged:
                    _drop_groups(rpc, [program.name])
                process = self._info(rpc, program.name)
                if process is None:
                    rpc.addProcessGroup(program.name)
                elif process.state in ("STOPPED", "EXITED", "FATAL"):
                    rpc.startProcess(program.name, False)

    def remove(self, *names: str) -> None:
        """Drain and stop processes for good, all at once, and supervisord with the last one.

        Names of which there is no process are passed over.
        """
        if not names or not self._programs.is_dir():
            return
        with locked(self.folder / "programs.lock", wait=True):
            for name in names:
                self._program_file(name).unlink(missing_ok=True)
            if self.is_running():
                with self._rpc() as rpc:
                    _drop_groups(rpc, names)
                    rpc.reloadConfig()
                if not self.program_names():
                    self._shut_down()

    def program_names(self) -> list[str]:
        """Names of all programs, whether supervisord runs or not."""
        if not self._programs.is_dir():
            return []
        return sorted(path.stem for path in self._programs.glob("*.conf"))

    def state(self, name: str) -> ProcessState | None:
        """State of a process, None when there is none by this name.

        Raises:
            SupervisorError: supervisord does not answer.
        """
        with self._rpc() as rpc:
            return self._info(rpc, name)

    # --- details ---

    def _ensure_running(self) -> None:
        """Start supervisord unless it answers; the caller holds the programs' lock.

        It outlives this process and its terminal.
        """
        if self.is_running():
            return
        config = self.folder / "supervisord.conf"
        write_atomic(config, self._daemon_config().encode())
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if started.returncode:
            why = (started.stderr or started.stdout).strip()[-500:]
            raise SupervisorError("The process supervisor cannot be started", why)
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_running():
            if time.monotonic() > deadline:
                raise SupervisorError(
                    "The process supervisor does not answer",
                    f"nothing listens on {self._socket}; its log is {self.folder / 'supervisord.log'}",
                )
            time.sleep(0.02)

    def _shut_down(self) -> None:
        """Stop supervisord; the caller holds the programs' lock, so that nobody starts another meanwhile."""
        if not self.is_running():
            return
        with self._rpc() as rpc:
            rpc.stopAllProcesses(True)
            pid = int(rpc.getPID())
            rpc.shutdown()
        deadline = time.monotonic() + _START_SECONDS
        while _alive(pid):
            if time.monotonic() > deadline:
                raise SupervisorError("The process supervisor does not stop", f"process {pid} still runs")
            time.sleep(0.02)

    def _info(self, rpc: Any, name: str) -> ProcessState | None:
        try:
            info = cast("dict[str, Any]", rpc.getProcessInfo(name))
        except xmlrpc.client.Fault as fault:
            if "BAD_NAME" in fault.faultString:
                return None
            raise
        return ProcessState(
            state=info["statename"],
            pid=info["pid"],
            started=float(info["start"]),
            exit_status=info["exitstatus"],
            error=info["spawnerr"],
        )

    @contextlib.contextmanager
    def _folder_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateWriteFailed(self.folder, error.strerror or str(error)) from error

    @contextlib.contextmanager
    def _rpc(self) -> Iterator[Any]:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            yield xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor
        except xmlrpc.client.Fault as fault:
            raise SupervisorError("The process supervisor refused", fault.faultString) from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisorError("The process supervisor does not answer", str(error)) from error
        finally:
            transport.close()

    def _program_file(self, name: str) -> Path:
        return self._programs / f"{name}.conf"

    def _daemon_config(self) -> str:
        user = "user=root\n" if os.geteuid() == 0 else ""
        return (
            "[unix_http_server]\n"
            f"file={_escape(self._socket)}\n"
            "chmod=0600\n\n"
            "[supervisord]\n"
            f"logfile={_escape(self.folder / 'supervisord.log')}\n"
            "logfile_maxbytes=5MB\n"
            "logfile_backups=2\n"
            f"pidfile={_escape(self.folder / 'supervisord.pid')}\n"
            "minfds=1024\n"
            f"{user}\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\n"
            "[include]\n"
            f"files={_escape(self._programs)}/*.conf\n"
        )


def _by_one_name(command: Sequence[str]) -> Sequence[str]:
    """The command with this environment's Python under one of its names.

    It has several, python and python3, and a process whose command differs is started anew.
    """
    usual = Path(sys.prefix, "bin", "python3")
    if command[0] == sys.executable and usual.exists() and usual.samefile(sys.executable):
        return [str(usual), *command[1:]]
    return command


def _program_config(program: Program) -> str:
    environment = ",".join(f'{key}="{_escape(value)}"' for key, value in program.environment.items())
    return (
        f"[program:{program.name}]\n"
        f"command={_escape(shlex.join(_by_one_name(program.command)))}\n"
        "autostart=true\n"
        "autorestart=unexpected\n"
        f"exitcodes={EXIT_BROKEN}\n"
        "startsecs=1\n"
        # supervisord waits one second longer after each failed start, so this many last for weeks.
        "startretries=2000\n"
        "stopsignal=TERM\n"
        f"stopwaitsecs={max(1, round(program.stop_seconds))}\n"
        f"stopasgroup={str(program.stop_group).lower()}\n"
        "killasgroup=true\n"
        + (f"environment={environment}\n" if environment else "")
        + f"stdout_logfile={_escape(program.log)}\n"
        f"stdout_logfile_maxbytes={_LOG_BYTES}\n"
        f"stdout_logfile_backups={_LOG_BACKUPS}\n"
        "redirect_stderr=true\n"
    )


def _drop_groups(rpc: Any, names: Iterable[str]) -> None:
    """Stop process groups, all of them at once, and forget them; those that do not exist are fine."""
    left = [name for name in names if _done(rpc.stopProcessGroup, name, False, unless="BAD_NAME")]
    for name in left:
        # supervisord kills what does not stop in its time, so this ends.
        while not _done(rpc.removeProcessGroup, name, unless="STILL_RUNNING"):
            time.sleep(0.02)


def _done(call: Callable[..., Any], *arguments: Any, unless: str) -> bool:
    """Call supervisord; False when it refuses with the fault of this name."""
    try:
        call(*arguments)
    except xmlrpc.client.Fault as fault:
        if unless not in fault.faultString:
            raise
        return False
    return True


def _escape(value: Path | str) -> str:
    return str(value).replace("%", "%%")


def _socket_path(folder: Path) -> Path:
    """The control socket's path; in a private folder under the temporary one when the state folder is deep."""
    path = folder / "supervisor.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    private = Path(tempfile.gettempdir()) / f"mlflow-deploy-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    owner = private.lstat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o077 or private.is_symlink():
        raise SupervisorError(
            "The process supervisor's control socket has no safe place",
            f"{private} is not a private folder of this user",
        )
    return private / f"{sha256(os.fsencode(folder)).hexdigest()[:16]}.sock"


def _alive(pid: int) -> bool:
    try:
        # A process that has ended stays a zombie where nothing reaps it, as in containers without an init.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
