"""What the monitor job reads while it waits: its order, and whether labels came."""

from __future__ import annotations

import contextlib
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import write_atomic
from mlflow_deploy.targets.base_monitor import (
    FOLDER,
    INCOMING,
    MonitorOrder,
    incoming_profile,
    order_path,
    profile_path,
)

_LABELS = "labels"


def read_order(data: Path) -> MonitorOrder | None:
    """The order in a data folder, None when there is none yet.

    Raises:
        StateWriteFailed: it cannot be read.
    """
    path = order_path(data)
    try:
        return msgspec.json.decode(path.read_bytes(), type=MonitorOrder)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StateWriteFailed(path, f"the monitors' order cannot be read: {error}") from error


def acts_itself(order: MonitorOrder) -> bool:
    """Whether the job may carry actions out itself; a container has no right over its engine."""
    return order.target == "local"


def shared_places(order: MonitorOrder) -> dict[int, str]:
    """Revision -> URL of the deployment's folder on shared storage, of revisions that have one."""
    found = {each.number: (each.settings.get("capture") or {}).get("url") or "" for each in order.revisions}
    if not any(found.values()):
        return {}
    # With the time, since a later deployment of the same name counts its revisions from 1 again.
    made = datetime.fromisoformat(order.created_at).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return {number: f"{url.rstrip('/')}/{order.deployment}/{made}" for number, url in found.items() if url}


def take_up(data: Path) -> None:
    """Take up a new order that was laid into the data folder, with the reference profiles that came with it.

    Raises:
        StateWriteFailed: it cannot be read yet, or not be taken up.
    """
    incoming = data / FOLDER / INCOMING
    if not incoming.exists():
        return
    try:
        order = msgspec.json.decode(incoming.read_bytes(), type=MonitorOrder)
        order_path(data).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for revision in order.revisions:
            profile = data / FOLDER / incoming_profile(revision.number)
            place = profile_path(data, revision.number)
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if profile.exists():
                write_atomic(place, profile.read_bytes())
                profile.unlink()
        write_atomic(order_path(data), msgspec.json.encode(order))
        incoming.unlink()
    except (OSError, msgspec.DecodeError) as error:
        raise StateWriteFailed(incoming, f"the monitors' order cannot be taken up: {error}") from error


def labels_fingerprint(data: Path) -> str:
    """Changes whenever labels were added; reads no label."""
    return folder_fingerprint(data / _LABELS, data / _LABELS / "open")


def last_change(*folders: Path) -> float:
    """When a file of some folders was written last, in seconds since the epoch; 0 without any."""
    latest = 0.0
    for folder in folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        latest = max(latest, entry.stat().st_mtime)
    return latest


def folder_fingerprint(*folders: Path) -> str:
    """Changes whenever files of some folders did."""
    found = []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found.append(f"{entry.name} {entry.stat().st_size}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
