"""The files that settings name, such as certificates, copied into volumes so that any engine can have them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.images.engine import Engine

FILES = "/etc/mlflow-deploy/files"
"""Where a revision's files are in its containers."""

DATA = "/var/lib/mlflow-deploy"
"""Where a deployment's data folder is in its containers."""

DATA_FOLDERS = ("capture", "labels", "monitor")
"""What there is in it."""

SEAL_KEY = "seal_key"
"""The setting that names a file as `file:PATH`."""


def fill(
    engine: Engine, container: str, serving: Mapping[str, Any], wanted: Iterable[str], *, folder: str = FILES
) -> None:
    """Copy the files that the settings name; where they are no longer here, earlier copies serve on.

    Raises:
        ConfigError: a file cannot be read and there is no copy; a container that never ran is removed.
    """
    wanted = list(wanted)
    try:
        put_files(engine, container, folder, read_files(serving, wanted))
    except ConfigError:
        from docker.errors import NotFound

        try:
            for key in wanted:
                engine.api.get_archive(container, f"{folder}/{key}")
        except NotFound:
            if engine.api.inspect_container(container)["State"]["Status"] == "created":
                engine.api.remove_container(container)
        else:
            return
        raise


def put_files(engine: Engine, container: str, folder: str, files: Mapping[str, bytes]) -> None:
    """Write files that only root's group may read into a volume of a container."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o440
            tar.addfile(member, io.BytesIO(content))
    engine.api.put_archive(container, folder, archive.getvalue())


def open_folder(engine: Engine, container: str, folder: str, user: str) -> None:
    """Make the folders in a container's data volume that its user writes into; root owns the volume itself.

    Args:
        user: UID or UID:GID; without a group it is root's, as in the images.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in DATA_FOLDERS:
            # The engine passes over an entry for the volume's own folder.
            part = tarfile.TarInfo(name)
            part.type, part.mode, part.gid = tarfile.DIRTYPE, 0o770, int(user.partition(":")[2] or 0)
            tar.addfile(part)
    engine.api.put_archive(container, folder, archive.getvalue())


def path_in(serving: Mapping[str, Any], key: str) -> str:
    """The file that a setting names, empty without one: the key of a sealed model may come from elsewhere."""
    value = str(serving.get(key) or "")
    if key != SEAL_KEY:
        return value
    kind, _, path = value.partition(":")
    return path if kind == "file" else ""


def read_files(serving: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, bytes]:
    """The contents of the files that settings name, by setting.

    Raises:
        ConfigError: one of them cannot be read.
    """
    found = {}
    for key in wanted:
        if path := path_in(serving, key):
            try:
                found[key] = Path(path).expanduser().read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"The file {path} of serving.{key} cannot be read",
                    why=error.strerror or str(error),
                    hint="It is copied into the containers, so it must be readable where this command runs",
                ) from error
    return found
