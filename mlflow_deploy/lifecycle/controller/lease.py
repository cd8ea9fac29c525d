"""The lease in MLflow: of the controllers of one registry, on whatever machines, one acts.

It is a tag of an experiment, which all of them see. MLflow cannot compare and set, so who takes it writes,
waits for a moment and reads back; who holds it reads it again before each thing that it begins. No two clocks
are compared: a holder is gone when the tag did not change for a while by the clock of the one who watches it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlflow_deploy.errors import DeployError, StateWriteFailed
from mlflow_deploy.files import write_atomic
from mlflow_deploy.lifecycle.registry import registry_errors

EXPERIMENT = "mlflow-deploy/controller"
"""Experiment whose tags are the leases."""

_IDENTITY = "controller.id"
_TAG = "mlflow_deploy.lease."


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The tag's value.

    Attributes:
        owner: identity of the holder's state folder; empty when it was given back.
        who: the holder in words.
        token: grows with each holder.
        renewed_at: seconds since the epoch by the holder's clock.
    """

    owner: str = ""
    who: str = ""
    token: int = 0
    renewed_at: float = 0.0


class Lease:
    """One controller's side of the lease.

    Args:
        home: its state folder; only one process of it may use the lease at a time.
        name: controllers that use the same name exclude each other.
        seconds: how long an unchanged tag keeps others away; it is renewed three times as often.
        settle: how long to wait before reading back what was written.
    """

    def __init__(self, home: Path, name: str, *, seconds: float = 30.0, settle: float = 1.0) -> None:
        self.seconds, self._settle = seconds, settle
        self._tag = f"{_TAG}{name}"
        self._owner = _identity(home)
        self._who = f"controller of process {os.getpid()} on {platform.node()}"
        self._lock = threading.Lock()
        self._mine: Held | None = None
        self._watched: tuple[Held, float] | None = None
        self._experiment = ""
        self.other_lives = False
        """Whether the other holder has renewed it while we watched."""

    @property
    def token(self) -> int:
        """Of our time as the holder; 0 while we are not."""
        return self._mine.token if self._mine else 0

    def take(self) -> str:
        """Take the lease, or keep it.

        Returns:
            Who else holds it; empty when we do.

        Raises:
            RegistryUnreachable: MLflow does not answer.
        """
        with self._lock:
            found = self._read()
            if self._mine and self._is_mine(found):
                self._write(self._mine)
                return ""
            self._mine = None
            if found.owner and found.owner != self._owner and not self._is_stale(found):
                return found.who
            recent = found.owner == self._owner and abs(time.time() - found.renewed_at) < self.seconds / 2
            wanted = Held(owner=self._owner, who=self._who, token=found.token + 1)
            self._write(wanted)
            if not recent:
                time.sleep(self._settle)
                found = self._read()
                if (found.owner, found.token) != (self._owner, wanted.token):
                    return found.who or "another controller"
            self._mine, self._watched = wanted, None
            return ""

    def holds(self) -> bool:
        """Whether it is still ours; ask before each thing that only the holder may begin.

        Raises:
            RegistryUnreachable: MLflow does not answer.
        """
        with self._lock:
            return self._mine is not None and self._is_mine(self._read())

    @contextlib.contextmanager
    def renewed(self, *, give_back: bool) -> Iterator[None]:
        """Renew it on a thread of its own while the block runs, however long a rollout in it takes.

        Args:
            give_back: give it back at the end, so that others need not wait.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(stop,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if give_back:
                # What cannot be given back is taken by others after a while.
                with contextlib.suppress(DeployError), self._lock:
                    if self._mine and self._is_mine(self._read()):
                        self._write(Held(token=self._mine.token))
            self._mine = None

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(self.seconds / 3):
            # Without an answer the tag stays as it is, and who watches it takes it in the end.
            with contextlib.suppress(DeployError), self._lock:
                if self._mine and self._is_mine(self._read()):
                    self._write(self._mine)

    def _is_mine(self, found: Held) -> bool:
        return self._mine is not None and (found.owner, found.token) == (self._owner, self._mine.token)

    def _is_stale(self, found: Held) -> bool:
        now = time.monotonic()
        if self._watched is None or self._watched[0] != found:
            self.other_lives = self._watched is not None
            self._watched = (found, now)
        return now - self._watched[1] > self.seconds

    def _read(self) -> Held:
        import mlflow

        with registry_errors(EXPERIMENT):
            experiment = mlflow.MlflowClient().get_experiment_by_name(EXPERIMENT)
        self._experiment = experiment.experiment_id if experiment else ""
        value = experiment.tags.get(self._tag, "") if experiment else ""
        try:
            return msgspec.json.decode(value, type=Held) if value else Held()
        except msgspec.DecodeError as error:
            raise StateWriteFailed(
                f"tag {self._tag} of experiment {EXPERIMENT}", f"it cannot be read: {error}; remove the tag"
            ) from error

    def _write(self, held: Held) -> None:
        """Set the tag of the experiment that was read just before."""
        import mlflow

        text = msgspec.json.encode(msgspec.structs.replace(held, renewed_at=time.time())).decode()
        with registry_errors(EXPERIMENT):
            client = mlflow.MlflowClient()
            self._experiment = self._experiment or client.create_experiment(EXPERIMENT)
            client.set_experiment_tag(self._experiment, self._tag, text)


def _identity(home: Path) -> str:
    """An identity of the state folder, made once."""
    file = home / _IDENTITY
    try:
        if not file.exists():
            write_atomic(file, uuid.uuid4().hex.encode())
        return file.read_text().strip()
    except OSError as error:
        raise StateWriteFailed(file, error.strerror or str(error)) from error
