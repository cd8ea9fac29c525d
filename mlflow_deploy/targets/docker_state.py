"""The state of target `docker`: records, addresses and locks as labelled volumes of the engine.

A volume's labels are written with it in one step and never change, and making a volume whose name is taken
gives the one that is there. So a record is replaced by making its next generation, and whoever makes a
port's or a lock's volume first has it, on whatever machine. The volumes themselves stay empty.
"""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.errors import DeployError, DeploymentBusy, PortInUse, StateWriteFailed
from mlflow_deploy.files import LockHeldError, locked, write_atomic
from mlflow_deploy.images.engine import Engine, connect, reason
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.targets.network import is_free

# Beside the range of the local target, and below the kernel's for outgoing connections.
_PORTS = range(9500, 10500)
_LOCAL_ENGINE = "http+docker://localhost"


def volumes(engine: Engine, filters: dict[str, Any]) -> list[dict[str, Any]]:
    """Volumes with all labels of a filter."""
    return engine.api.volumes(filters)["Volumes"] or []


def remove_volume(engine: Engine, volume: str) -> None:
    """Remove a volume; one that is gone is no error."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        engine.api.remove_volume(volume)


# --- records -----------------------------------------------------------------------------------------------


def read_record(engine: Engine, names: Names, name: str) -> DeploymentRecord | None:
    """The record of the highest generation, or None."""
    found = volumes(engine, names.filters(name, "record"))
    if not found:
        return None
    newest = max(found, key=_generation)
    return decode_record(newest["Labels"][keys.RECORD], newest["Name"])


def decode_record(text: str, where: str) -> DeploymentRecord:
    """The record in a label.

    Raises:
        StateWriteFailed: it cannot be read.
    """
    try:
        return msgspec.json.decode(text, type=DeploymentRecord)
    except msgspec.DecodeError as error:
        raise StateWriteFailed(where, f"the record cannot be read: {error}") from error


def write_record(engine: Engine, names: Names, record: DeploymentRecord) -> None:
    """Make the record's next generation, then remove the earlier ones.

    Raises:
        StateWriteFailed: the engine refuses, or another command wrote at the same time.
    """
    from docker.errors import APIError

    old = volumes(engine, names.filters(record.name, "record"))
    number = max(map(_generation, old), default=0) + 1
    text = msgspec.json.encode(record).decode()
    volume = names.record(record.name, number)
    labels = names.labels(record.name, "record", record=text, generation=str(number))
    try:
        made = engine.api.create_volume(volume, labels=labels)
    except APIError as error:
        raise StateWriteFailed(f"the record of {record.name}", reason(error)) from error
    if made["Labels"] != labels:
        raise StateWriteFailed(f"the record of {record.name}", "another command wrote it at the same time")
    for each in old:
        remove_volume(engine, each["Name"])


def remove_records(engine: Engine, names: Names, name: str) -> None:
    """Remove all generations, the highest last, so that a kill in between leaves none that was overtaken."""
    for each in sorted(volumes(engine, names.filters(name, "record")), key=_generation):
        remove_volume(engine, each["Name"])


def _generation(volume: dict[str, Any]) -> int:
    return int(volume["Labels"][keys.GENERATION])


# --- words to a rollout ------------------------------------------------------------------------------------


def read_control(engine: Engine, names: Names, name: str) -> str:
    """The latest word, or an empty string."""
    found = volumes(engine, names.filters(name, "control"))
    return str(max(found, key=_generation)["Labels"][keys.WORD]) if found else ""


def write_control(engine: Engine, names: Names, name: str, word: str) -> None:
    """Replace the word; an empty one takes it back."""
    old = volumes(engine, names.filters(name, "control"))
    if word:
        number = max(map(_generation, old), default=0) + 1
        labels = names.labels(name, "control", word=word, generation=str(number))
        engine.api.create_volume(names.control(name, number), labels=labels)
    for each in old:
        remove_volume(engine, each["Name"])


# --- addresses ---------------------------------------------------------------------------------------------


def reserve_address(engine: Engine, names: Names, name: str, host: str, port: int | None) -> int:
    """The port of a deployment, reserved on the engine at the first call.

    Raises:
        PortInUse: the wanted port is taken.
        ConfigError: the address is not one of this machine, which the engine runs on.
    """
    own = {int(each["Labels"][keys.PORT]) for each in volumes(engine, names.filters(name, "address"))}
    for reserved in own:
        if port in (None, reserved):
            return reserved
    published = {
        each.get("PublicPort") for container in engine.api.containers() for each in container["Ports"]
    }
    for candidate in _PORTS if port is None else (port,):
        # On another machine only the start of the container tells.
        here = engine.api.base_url == _LOCAL_ENGINE
        if candidate not in published and (not here or is_free(host, candidate)):
            labels = names.labels(name, "address", port=str(candidate), host=host)
            if engine.api.create_volume(names.address(candidate), labels=labels)["Labels"] == labels:
                for old in own:
                    remove_volume(engine, names.address(old))
                return candidate
    raise PortInUse(host, port or _PORTS.stop - 1)


# --- locks -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hold(folder: Path, names: Names, name: str) -> Iterator[None]:
    """Hold a deployment against other commands: of this machine by a file, of others by a volume.

    Raises:
        DeploymentBusy: another command holds it.
    """
    path = folder / "locks" / f"{names.lock(name)}.lock"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(locked(path, wait=False, owner=f"process {os.getpid()}"))
            owner = _owner(folder)
        except LockHeldError as error:
            raise DeploymentBusy(name, error.owner) from error
        except OSError as error:
            raise StateWriteFailed(path, error.strerror or str(error)) from error
        with connect() as engine:
            _take(engine, names, name, owner)
        try:
            yield
        finally:
            # A lock that stays behind is this machine's own and is taken over by its next command.
            with contextlib.suppress(DeployError), connect() as engine:
                remove_volume(engine, names.lock(name))


def _take(engine: Engine, names: Names, name: str, owner: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = f"process {os.getpid()} on {platform.node()} since {since}"
    labels = names.labels(name, "lock", owner=owner, holder=holder, nonce=uuid.uuid4().hex)
    volume = names.lock(name)
    made = engine.api.create_volume(volume, labels=labels)["Labels"]
    if made != labels and made.get(keys.OWNER) == owner:
        # Its holder was killed: whoever lives has the file lock, and that is held by this process.
        remove_volume(engine, volume)
        made = engine.api.create_volume(volume, labels=labels)["Labels"]
    if made != labels:
        why = f"{made.get(keys.HOLDER, 'another machine')}; should that be gone: docker volume rm {volume}"
        raise DeploymentBusy(name, why)


def _owner(folder: Path) -> str:
    """What tells this state folder from those of other machines and users; the caller holds a lock in it."""
    path = folder / "id"
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        with locked(folder / "id.lock", wait=True):
            if not path.exists():
                write_atomic(path, uuid.uuid4().hex.encode())
        return path.read_text(encoding="ascii")
