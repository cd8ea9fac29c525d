"""The monitor job of a deployment on Docker: a container beside its revisions, on the same data volume."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.bundle import PROFILE
from mlflow_deploy.errors import MonitorFailed, PortInUse, TargetError
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine, reason
from mlflow_deploy.images.labels import PREFIX
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.settings import storage_packages
from mlflow_deploy.targets.base_monitor import (
    FOLDER,
    HOST_OF_CONTAINER,
    INCOMING,
    JOB,
    MonitoredRevision,
    MonitorOrder,
    incoming_profile,
    order_of,
)
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.docker_containers import PORT_TAKEN, docker_spec, remove_all, stop_containers
from mlflow_deploy.targets.docker_files import DATA, open_folder
from mlflow_deploy.targets.docker_limits import hardened
from mlflow_deploy.targets.docker_monitor_image import PORT, ensure_monitor_image
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.targets.local_monitor import answer

Progress = Callable[[str], None]

ROLE = "monitor"
_STOP_SECONDS = 5.0
_STORAGE = PREFIX + "storage"
"""Label of a monitor's container: the packages in it by which shared storage is reached."""
_LOOPBACK = re.compile(r"^(https?://)(localhost|127\.0\.0\.1|\[::1\])(?=[:/]|$)")


def apply_monitor(
    engine: Engine,
    names: Names,
    record: DeploymentRecord,
    bundles: Path,
    image_spec: ImageSpec,
    progress: Progress,
) -> None:
    """Start the job of a deployment, tell the running one what to do, or stop it when nothing is monitored.

    Args:
        bundles: folder of the bundles on this machine, for their reference profiles.

    Raises:
        DeployError: its image cannot be built, or its container does not start.
    """
    order = order_of(record, "docker")
    containers = _containers(engine, names, record.name)
    if order is None:
        stop_containers(engine, containers, _STOP_SECONDS)
        return
    storage = _storage(order)
    running = [each for each in containers if each["State"] in ("running", "restarting")]
    if running and set(storage) <= set(running[0]["Labels"].get(_STORAGE, "").split(",")):
        _tell(engine, running[0]["Id"], order, bundles)
        return
    wanted = any(
        each.settings.get("monitor", {}).get("evidently") == "always"
        for each in order.revisions
        if each.active
    )
    image = ensure_monitor_image(engine, image_spec, progress, evidently=wanted, storage=storage)
    remove_all(engine, containers)
    container = _create(engine, names, record, order, image)
    try:
        open_folder(engine, container, DATA, docker_spec(record.stable).user)
        _tell(engine, container, order, bundles)
        _start(engine, record, container)
    except BaseException:
        remove_all(engine, [{"Id": container}])
        raise


def monitor_state(engine: Engine, names: Names, record: DeploymentRecord) -> str:
    """How the job is: `running`, `off` when no monitor is attached, or why it does not run."""
    if order_of(record, "docker") is None:
        return "off"
    found = _containers(engine, names, record.name)
    if not found:
        return "not running: it has no container; `mlflow-deploy up` starts it"
    return (
        "running" if found[0]["State"] == "running" else f"not running: its container is {found[0]['State']}"
    )


def ask_monitor(engine: Engine, names: Names, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
    """Run a command of the job in its container; returns what it printed.

    Raises:
        MonitorFailed: there is no such container, or the command failed.
    """
    from docker.errors import APIError

    running = [each for each in _containers(engine, names, record.name) if each["State"] == "running"]
    if not running:
        raise MonitorFailed(
            record.name, "its monitor container does not run", "Start it with `mlflow-deploy up`"
        )
    command, *options = arguments
    words = [layout.PYTHON, "-m", JOB, command, DATA, *options]
    try:
        made = engine.api.exec_create(running[0]["Id"], words)
        printed, errors = engine.api.exec_start(made["Id"], demux=True)
        status = engine.api.exec_inspect(made["Id"])["ExitCode"]
    except APIError as error:
        raise MonitorFailed(record.name, reason(error)) from error
    return answer(record.name, -1 if status is None else int(status), printed or b"", errors or b"")


# --- details -----------------------------------------------------------------------------------------------


def _storage(order: MonitorOrder) -> tuple[str, ...]:
    """Packages by which the job reaches the shared storage of its revisions."""
    urls = {(each.settings.get("capture") or {}).get("url") or "" for each in order.revisions}
    return tuple(sorted({package for url in urls for package in storage_packages(url)}))


def _containers(engine: Engine, names: Names, name: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = engine.api.containers(all=True, filters=names.filters(name, ROLE))
    return found


def _create(engine: Engine, names: Names, record: DeploymentRecord, order: MonitorOrder, image: str) -> str:
    spec = docker_spec(record.stable)
    data = names.data(record.name)
    labels = {**names.labels(record.name, ROLE), _STORAGE: ",".join(_storage(order))}
    engine.api.create_volume(data, labels=names.labels(record.name, "data"))
    host = hardened(spec) | {
        "network_mode": names.network(record.name),
        "binds": {data: {"bind": DATA, "mode": "rw"}},
        "extra_hosts": {HOST_OF_CONTAINER: "host-gateway"},
        "port_bindings": {f"{PORT}/tcp": (order.metrics_host, order.metrics_port or None)},
    }
    endpoint = engine.api.create_endpoint_config(aliases=["monitor"])
    container: str = engine.api.create_container(
        image,
        name=names.monitor(record.name),
        labels=labels,
        environment=dict(spec.env),
        user=spec.user or None,
        ports=[PORT],
        host_config=engine.api.create_host_config(**host),
        networking_config=engine.api.create_networking_config({names.network(record.name): endpoint}),
    )["Id"]
    if spec.network:
        engine.api.connect_container_to_network(container, spec.network)
    return container


def _start(engine: Engine, record: DeploymentRecord, container: str) -> None:
    from docker.errors import APIError

    try:
        engine.api.start(container)
    except APIError as error:
        why = reason(error)
        monitor = record.stable.settings.monitor
        if any(words in why for words in PORT_TAKEN) and monitor.metrics_port:
            raise PortInUse(monitor.metrics_host, monitor.metrics_port) from error
        raise TargetError(
            f"The monitor of deployment {record.name!r} does not start",
            why=why,
            hint="The deployment serves all the same; `mlflow-deploy up` tries it again",
        ) from error


def _tell(engine: Engine, container: str, order: MonitorOrder, bundles: Path) -> None:
    """Lay the order, with the reference profiles that it needs, where the job takes it up."""
    files = {}
    for revision in order.revisions:
        source = bundles / revision.bundle / PROFILE
        if source.exists():
            files[incoming_profile(revision.number)] = source.read_bytes()
    inside = msgspec.structs.replace(
        order,
        revisions=tuple(_inside(revision) for revision in order.revisions),
        metrics_host="0.0.0.0",  # noqa: S104 - of its container; the engine publishes it where the user wants
        metrics_port=PORT,
    )
    # The order last: what it needs is there then.
    files[INCOMING] = json.dumps(msgspec.to_builtins(inside)).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))
    engine.api.put_archive(container, f"{DATA}/{FOLDER}", archive.getvalue())


def _inside(revision: MonitoredRevision) -> MonitoredRevision:
    """The revision with servers as a container reaches them; what only this machine has is left out."""

    def reached(uri: str) -> str:
        served = uri.startswith(("http://", "https://", "databricks"))
        return _LOOPBACK.sub(rf"\1{HOST_OF_CONTAINER}", uri) if served else ""

    return msgspec.structs.replace(
        revision,
        tracking_uri=reached(revision.tracking_uri),
        registry_uri=reached(revision.registry_uri),
    )
