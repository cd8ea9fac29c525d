"""Documents that outlive a deployment of target `docker`, as labels of volumes that carry no other label of it.

As with the record, a document is replaced by making its next generation, and the highest one holds.
"""

from __future__ import annotations

from typing import Any

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.images.engine import Engine, reason
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.targets.docker_state import remove_volume, volumes


def read(engine: Engine, names: Names, name: str, *wanted: str) -> dict[str, bytes]:
    """The documents of a name by key; all of them when none is named."""
    newest: dict[str, tuple[int, bytes]] = {}
    for volume in _volumes(engine, names, name, wanted[0] if len(wanted) == 1 else ""):
        labels = volume["Labels"]
        key, generation = labels[keys.ARCHIVE_KEY], int(labels[keys.GENERATION])
        if (not wanted or key in wanted) and generation > newest.get(key, (0, b""))[0]:
            newest[key] = (generation, labels[keys.DOCUMENT].encode())
    return {key: document for key, (_, document) in newest.items()}


def write(engine: Engine, names: Names, name: str, key: str, document: bytes) -> None:
    """Make a document's next generation, then remove the earlier ones.

    Raises:
        StateWriteFailed: the engine refuses, or another command wrote at the same time.
    """
    from docker.errors import APIError

    old = _volumes(engine, names, name, key)
    generation = max((int(each["Labels"][keys.GENERATION]) for each in old), default=0) + 1
    labels = {
        keys.ARCHIVE: names.namespace,
        keys.ARCHIVE_OF: name,
        keys.ARCHIVE_KEY: key,
        keys.GENERATION: str(generation),
        keys.DOCUMENT: document.decode(),
    }
    try:
        made = engine.api.create_volume(names.archive(name, key, generation), labels=labels)
    except APIError as error:
        raise StateWriteFailed(f"{key} of {name}", reason(error)) from error
    if made["Labels"] != labels:
        raise StateWriteFailed(f"{key} of {name}", "another command wrote it at the same time")
    for each in old:
        remove_volume(engine, each["Name"])


def names_of(engine: Engine, names: Names) -> list[str]:
    """All names of the namespace that have documents, sorted."""
    found = volumes(engine, {"label": [f"{keys.ARCHIVE}={names.namespace}"]})
    return sorted({str(each["Labels"][keys.ARCHIVE_OF]) for each in found})


def _volumes(engine: Engine, names: Names, name: str, key: str) -> list[dict[str, Any]]:
    wanted = [f"{keys.ARCHIVE}={names.namespace}", f"{keys.ARCHIVE_OF}={name}"]
    wanted += [f"{keys.ARCHIVE_KEY}={key}"] if key else []
    return volumes(engine, {"label": wanted})
