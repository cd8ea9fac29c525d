"""Which deployment of this machine has which ports; kept in `ports.json` of each deployment's folder."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection
from pathlib import Path

import msgspec

from mlflow_deploy.errors import PortInUse, StateWriteFailed
from mlflow_deploy.files import locked, write_atomic
from mlflow_deploy.targets.network import free_port, is_free

# Below the kernel's range for outgoing connections, so that nothing takes a port while its owner is down.
_RANGE = range(8500, 9500)
_FILE = "ports.json"


class PortBook:
    """The ports of all deployments under one folder.

    A deployment has a port for each label: `public`, and `r3-1` or `r3-1-grpc` for replica 1 of revision 3
    behind a gateway.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: the target's folder, with one folder for each deployment in `deployments/`."""
        self._folder = folder
        self._deployments = folder / "deployments"
        # Each folder begins its search elsewhere: two that look for a port at the same moment, whose servers
        # do not listen yet, would find the same one free.
        start = zlib.crc32(os.fsencode(folder)) % len(_RANGE)
        self._candidates = (*_RANGE[start:], *_RANGE[:start])

    def port(self, name: str, label: str, host: str, wanted: int | None = None) -> int:
        """The port that a deployment has under a label; reserved at the first call.

        Args:
            wanted: the port to take, None for a free one.

        Raises:
            PortInUse: the wanted port is taken.
            ConfigError: the address is not one of this machine.
            StateWriteFailed: the choice cannot be written down.
        """
        own = self._deployments / name / _FILE
        try:
            own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self._folder / "ports.lock", wait=True):
                book = _read(own)
                if label in book and wanted in (None, book[label]):
                    return book[label]
                taken = {
                    port for path in self._deployments.glob(f"*/{_FILE}") for port in _read(path).values()
                }
                if wanted is None:
                    book[label] = free_port(
                        host, [number for number in self._candidates if number not in taken]
                    )
                elif wanted in taken or not is_free(host, wanted):
                    raise PortInUse(host, wanted)
                else:
                    book[label] = wanted
                write_atomic(own, msgspec.json.encode(book))
                return book[label]
        except OSError as error:
            raise StateWriteFailed(own, error.strerror or str(error)) from error

    def forget(self, name: str, revisions: Collection[int]) -> None:
        """Free the ports of all revisions of a deployment but these; nothing may listen on them any more.

        Raises:
            StateWriteFailed: that cannot be written down.
        """
        own = self._deployments / name / _FILE
        try:
            with locked(self._folder / "ports.lock", wait=True):
                book = _read(own)
                kept = {label: port for label, port in book.items() if _revision(label) in (0, *revisions)}
                if kept != book:
                    write_atomic(own, msgspec.json.encode(kept))
        except OSError as error:
            raise StateWriteFailed(own, error.strerror or str(error)) from error


def _revision(label: str) -> int:
    """The revision that a label is of; 0 for the deployment's own."""
    match = re.match(r"r(\d+)", label)
    return int(match[1]) if match else 0


def _read(path: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise StateWriteFailed(path, f"the reserved ports cannot be read: {error}") from error
