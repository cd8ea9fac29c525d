"""The outbox: release records that MLflow does not have yet, logged in a short attempt and else later.

A release is done when its file is written. MLflow is told after that, without the deployment's lock, for a few
seconds at most; what is left waits for the next command or the controller.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import ConfigError, DeployError, StateWriteFailed
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle.records.chain import documents, read_head
from mlflow_deploy.lifecycle.records.mlflow_copy import Store, open_store, server_problem
from mlflow_deploy.lifecycle.records.record import decode
from mlflow_deploy.targets.base import Target

OUTBOX = "outbox"
SECONDS_VARIABLE = "MLFLOW_DEPLOY_RECORD_SECONDS"
"""Environment variable: how long a command may tell MLflow of its release; 0 = leave it to a later one."""

_DEFAULT_SECONDS = 5.0


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """What MLflow has.

    Attributes:
        runs: number of a record -> id of its run.
        why: why the last attempt left something; empty when it did not.
    """

    runs: dict[int, str] = {}
    why: str = ""


@dataclass(frozen=True)
class Flushed:
    """What an attempt did.

    Attributes:
        logged: records that were logged by it.
        left: records that MLflow does not have yet.
        why: why some are left.
    """

    logged: int
    left: int
    why: str = ""

    @property
    def text(self) -> str:
        """One line for the user."""
        if not self.left:
            return "logged"
        return f"{self.left} not logged yet: {self.why}; a later command does it"


def read_outbox(target: Target, name: str) -> Outbox:
    """What MLflow has of a name's records.

    Raises:
        StateWriteFailed: it cannot be read.
    """
    found = target.read_archive(name, OUTBOX).get(OUTBOX)
    try:
        return msgspec.json.decode(found, type=Outbox) if found else Outbox()
    except msgspec.DecodeError as error:
        raise StateWriteFailed(f"the outbox of {name}", f"it cannot be read: {error}") from error


def flush(target: Target, name: str, *, seconds: float | None = None) -> Flushed:
    """Log what MLflow does not have yet, for a short time; never raises.

    Args:
        seconds: how long to try at most; None = as the environment says.
    """
    try:
        limit = record_seconds() if seconds is None else seconds
        waiting = read_head(target, name).number - len(read_outbox(target, name).runs)
        if waiting <= 0 or limit <= 0:
            why = f"{SECONDS_VARIABLE} is 0" if waiting > 0 else ""
            return Flushed(0, max(waiting, 0), why)
    except DeployError as error:
        return Flushed(0, 1, error.text)
    attempt = _Attempt(target, name)
    # A daemon: a server that hangs must not keep the command from ending.
    thread = threading.Thread(target=attempt.run, name=f"release-record-{name}", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        attempt.stop.set()
        return Flushed(attempt.logged, max(1, waiting - attempt.logged), f"not done within {limit:g} s")
    return Flushed(attempt.logged, max(0, waiting - attempt.logged), attempt.why)


def record_seconds() -> float:
    """How long a command may tell MLflow of its release.

    Raises:
        ConfigError: the environment variable is no number.
    """
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        return float(text) if text else _DEFAULT_SECONDS
    except ValueError:
        raise ConfigError(f"{SECONDS_VARIABLE}={text} cannot be used", why="it is no number") from None


class _Attempt:
    """One attempt, in a thread of its own."""

    def __init__(self, target: Target, name: str) -> None:
        self._target, self._name = target, name
        self.stop = threading.Event()
        self.logged = 0
        self.why = ""

    def run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(_lock_file(), wait=False))
                except LockHeldError:
                    self.why = "another command is logging"
                    return
                self.why = server_problem()
                if not self.why and not self.stop.is_set():
                    self._log_all(open_store(self._target.name, self._name))
        except Exception as error:  # noqa: BLE001 - MLflow's stores raise what their clients raise; the text is reported
            self.why = (" ".join(str(error).split()) or type(error).__name__)[:300]
        if not self.stop.is_set():
            self._note()

    def _log_all(self, store: Store) -> None:
        outbox = read_outbox(self._target, self._name)
        for number, document in documents(self._target, self._name).items():
            if number in outbox.runs:
                continue
            if self.stop.is_set():
                return
            run_id = store.log(decode(document), document)
            outbox = msgspec.structs.replace(outbox, runs={**outbox.runs, number: run_id}, why="")
            self._target.write_archive(self._name, OUTBOX, msgspec.json.encode(outbox))
            self.logged += 1

    def _note(self) -> None:
        """Keep why something is left, for `release show` and the controller."""
        try:
            outbox = read_outbox(self._target, self._name)
            if self.why != outbox.why:
                noted = msgspec.structs.replace(outbox, why=self.why)
                self._target.write_archive(self._name, OUTBOX, msgspec.json.encode(noted))
        except DeployError as error:
            self.why = self.why or error.text


def _lock_file() -> Path:
    home = state_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home / "outbox.lock"
