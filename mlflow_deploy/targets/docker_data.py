"""Puts labels into the data volume of a deployment, through one of its containers."""

from __future__ import annotations

import io
import tarfile

from mlflow_deploy.errors import TargetError
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine
from mlflow_deploy.targets.docker_containers import execute
from mlflow_deploy.targets.docker_files import DATA

_RENAME = "import os, sys; os.rename(sys.argv[1], sys.argv[2])"


def put_labels(engine: Engine, container: str, name: str, content: bytes, user: str) -> None:
    """Write a file of labels; readers see it whole or not at all.

    Args:
        container: a running one with the data volume.
        user: UID or UID:GID that it runs as; without a group it is root's, as in the images.

    Raises:
        TargetError: it cannot be written.
    """
    aside = f"labels/.{name}.adding"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo("labels")
        group = int(user.partition(":")[2] or 0)
        folder.type, folder.mode, folder.gid = tarfile.DIRTYPE, 0o770, group
        tar.addfile(folder)
        member = tarfile.TarInfo(aside)
        member.size, member.mode, member.gid = len(content), 0o640, group
        tar.addfile(member, io.BytesIO(content))
    engine.api.put_archive(container, DATA, archive.getvalue())
    command = [layout.PYTHON, "-I", "-S", "-c", _RENAME, f"{DATA}/{aside}", f"{DATA}/labels/{name}"]
    status, output = execute(engine, container, command)
    if status != 0:
        raise TargetError(
            "The labels cannot be kept", why=output.strip() or "the container ended", hint="Try again"
        )
