"""Hints that something was moved in the registry: small files that wake the controller and say who did it.

A hint may be lost, late, doubled or wrong without harm: what is done follows from the registry alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import write_atomic

MOST = 1000
"""Hints that are kept while no controller takes them."""

_FOLDER = "hints"
_POLL_SECONDS = 0.1
_LOG = logging.getLogger("mlflow_deploy")


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody has moved, in the words of `records.moves_of_model.Move`.

    Attributes:
        model: registered model.
        kind: stage, alias or version; other for tags and whatever else may matter.
        what: the version's number, or the alias.
        after: stage of the version, or version of the alias; empty for none; made or removed of a version.
        archives: whether the versions that were in the stage were archived with it.
        at: UTC time, ISO 8601.
        by: who did it; empty where that is not known.
        source: what saw it.
    """

    model: str
    kind: Literal["stage", "alias", "version", "other"] = "other"
    what: str = ""
    after: str = ""
    archives: bool = False
    at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    by: str = ""
    source: Literal["app", "webhook"] = "app"


def give(hint: Hint) -> bool:
    """Leave a hint for the controller that has this state folder.

    Returns:
        Whether it was kept; it is not where 1,000 wait already.

    Raises:
        StateWriteFailed: it cannot be written.
    """
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(_names()) >= MOST:
            return False
        name = f"{time.time_ns():020}-{os.getpid()}-{threading.get_ident()}.json"
        write_atomic(folder / name, msgspec.json.encode(hint))
    except OSError as error:
        raise StateWriteFailed(folder, error.strerror or str(error)) from error
    return True


class Hints:
    """The hints that wait for the controller."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    @property
    def waiting(self) -> bool:
        """Whether a hint has come that was not read yet."""
        return bool(set(_names()) - self._known)

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Wait until a hint comes that was not read yet, the time is over, or the controller shall stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if stop.wait(min(_POLL_SECONDS, left)) or self.waiting:
                return

    def read(self) -> list[Hint]:
        """All that wait, the oldest first; they wait on until `done`."""
        found = []
        names = _names()
        for name in names:
            try:
                found.append(msgspec.json.decode((_folder() / name).read_bytes(), type=Hint))
            except (OSError, msgspec.DecodeError) as error:
                _LOG.warning("the hint %s cannot be read and is left out: %s", name, error)
        self._known = set(names)
        return found

    def done(self) -> None:
        """Remove those that were read."""
        for name in self._known:
            try:
                (_folder() / name).unlink(missing_ok=True)
            except OSError as error:
                _LOG.warning("the hint %s cannot be removed: %s", name, error)


def _folder() -> Path:
    return state_home() / _FOLDER


def _names() -> list[str]:
    try:
        return sorted(each.name for each in _folder().iterdir() if not each.name.startswith("."))
    except FileNotFoundError:
        return []
