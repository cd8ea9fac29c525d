"""What killed commands left on a Docker engine: containers, networks and volumes that no record wants."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_deploy.images.engine import Engine
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets import docker_state as state
from mlflow_deploy.targets.base_records import DeploymentRecord, Orphan
from mlflow_deploy.targets.docker_containers import stop_containers
from mlflow_deploy.targets.docker_names import Names

_DRAIN_SECONDS = 10.0


def left_locks(engine: Engine, names: Names) -> set[str]:
    """Deployments that a lock was left of."""
    locks = state.volumes(engine, names.filters(role="lock"))
    return {str(each["Labels"][keys.DEPLOYMENT]) for each in locks}


def find_orphans(
    engine: Engine, names: Names, name: str, record: DeploymentRecord | None
) -> Iterator[Orphan]:
    """Containers, networks and volumes of a deployment that nothing needs; its record's last.

    Args:
        record: of the deployment, in whatever phase; None when there is none.
    """
    ready = record if record is not None and record.phase == "ready" else None
    wanted = names.filters(name)
    for container in engine.api.containers(all=True, filters=wanted):
        if why := _unwanted_container(container["Labels"], ready):
            yield _orphan("container", container["Names"][0].lstrip("/"), name, why)
    for network in engine.api.networks(filters=wanted):
        if ready is None:
            yield _orphan("network", network["Name"], name, "its deployment has no record")
    volumes = [each for each in state.volumes(engine, wanted) if each["Labels"][keys.ROLE] != "lock"]
    newest = max((_generation(each) for each in volumes if each["Labels"][keys.ROLE] == "record"), default=0)
    for volume in sorted(
        volumes, key=lambda each: (each["Labels"][keys.ROLE] == "record", _generation(each))
    ):
        if why := _unwanted_volume(volume, ready, newest):
            yield _orphan("volume", volume["Name"], name, why)


def remove_orphan(engine: Engine, names: Names, orphan: Orphan) -> None:
    """Drain and remove a container, or remove a network or volume; one that is gone is no error."""
    from docker.errors import NotFound

    if orphan.kind == "container":
        wanted = names.filters(orphan.deployment)
        found = engine.api.containers(all=True, filters=wanted)
        mine = [each for each in found if each["Names"][0].lstrip("/") == orphan.name]
        stop_containers(engine, mine, _DRAIN_SECONDS)
    elif orphan.kind == "network":
        with contextlib.suppress(NotFound):
            for container in engine.api.inspect_network(orphan.name).get("Containers") or {}:
                engine.api.disconnect_container_from_network(container, orphan.name, force=True)
            engine.api.remove_network(orphan.name)
    else:
        state.remove_volume(engine, orphan.name)


def bundles_in_use(engine: Engine) -> set[str]:
    """Digests of the bundles that deployments of any namespace refer to, and that containers were made from."""
    records = state.volumes(engine, {"label": [f"{keys.ROLE}=record"]})
    found = {
        revision.bundle
        for volume in records
        for revision in state.decode_record(volume["Labels"][keys.RECORD], volume["Name"]).revisions
    }
    containers = engine.api.containers(all=True, filters={"label": [keys.BUNDLE]})
    return found | {str(each["Labels"][keys.BUNDLE]) for each in containers}


def _orphan(kind: str, name: str, deployment: str, why: str) -> Orphan:
    return Orphan(target="docker", kind=kind, name=name, deployment=deployment, why=why)


def _unwanted_container(labels: Mapping[str, str], record: DeploymentRecord | None) -> str:
    """Why a container shall not be there, or an empty string."""
    if record is None:
        return "its deployment has no record"
    if labels[keys.ROLE] == "gateway":
        return "its deployment has no gateway" if record.gateway == "none" else ""
    number = int(labels.get(keys.REVISION, 0))
    if not number or number in (*record.wanted, *record.kept, record.candidate):
        return ""
    return f"revision {number} has no traffic"


def _unwanted_volume(volume: Mapping[str, Any], record: DeploymentRecord | None, newest: int) -> str:
    """Why a volume shall not be there, or an empty string."""
    labels = volume["Labels"]
    role = labels[keys.ROLE]
    if record is None:
        return "its deployment has no record"
    if role == "record" and _generation(volume) < newest:
        return "a newer record holds"
    if role == "control" and record.rollout is None:
        return "no rollout goes on"
    if role == "gateway" and record.gateway == "none":
        return "its deployment has no gateway"
    if role == "address" and int(labels[keys.PORT]) != record.port:
        return f"its deployment has port {record.port}"
    number = int(labels.get(keys.REVISION, 0))
    if number and number not in {revision.number for revision in record.revisions}:
        return f"there is no revision {number} any more"
    return ""


def _generation(volume: Mapping[str, Any]) -> int:
    return int(volume["Labels"].get(keys.GENERATION, 0))
