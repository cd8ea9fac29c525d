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


def read_files(serving: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, bytes]:
    """The contents of the files that settings name, by setting.

    Raises:
        ConfigError: one of them cannot be read.
    """
    found = {}
    for key in wanted:
        if path := serving.get(key):
            try:
                found[key] = Path(path).read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"The file {path} of serving.{key} cannot be read",
                    why=error.strerror or str(error),
                    hint="It is copied into the containers, so it must be readable where this command runs",
                ) from error
    return found
