"""The containers of one revision on a Docker engine: make, start, wait, look, stop."""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from mlflow_deploy.config import DockerSpec
from mlflow_deploy.errors import PortInUse, StartFailed
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine, reason
from mlflow_deploy.serving.ask import ORDER
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord
from mlflow_deploy.targets.docker_files import DATA, FILES, SEAL_KEY, fill, open_folder, path_in
from mlflow_deploy.targets.docker_limits import hardened, limits
from mlflow_deploy.targets.docker_names import Names, alias
from mlflow_deploy.targets.replicas import ReplicaStatus, captured, wait_until_ready

_FILE_KEYS = ("auth_file", "tls_cert", "tls_key", "tls_client_ca", SEAL_KEY)
_HASH_KEY = "hash_key"
_HEALTH = [layout.PYTHON, "-I", "-S", f"{layout.APP}/mlflow_deploy/images/health.py"]
_POLL_SECONDS = 0.1
_TAIL_LINES = 5
# Room for the server's own clean-up after its drain, and for a busy engine.
_STOP_SECONDS = 5
PORT_TAKEN = ("port is already allocated", "address already in use")
"""What the engine says when a port that a container shall have is taken."""
_NO_GPU = ("could not select device driver", "nvidia-container")


@dataclass(frozen=True)
class Place:
    """Where a revision runs.

    Attributes:
        names: naming of the engine's namespace.
        record: the deployment.
        revision: the revision.
    """

    names: Names
    record: DeploymentRecord
    revision: RevisionRecord

    @property
    def spec(self) -> DockerSpec:
        """How its containers run."""
        return docker_spec(self.revision)

    @property
    def behind_gateway(self) -> bool:
        """Whether the gateway has the deployment's port."""
        return self.record.gateway != "none"

    @property
    def replicas(self) -> int:
        """How many containers it shall have now."""
        return self.record.replica_count(self.revision.number)

    @property
    def filters(self) -> dict[str, Any]:
        """What finds its containers."""
        return self.names.filters(self.record.name, "revision", self.revision.number)


def docker_spec(revision: RevisionRecord) -> DockerSpec:
    """The settings of target `docker` in a revision's record."""
    return revision.settings.docker


def ensure_running(engine: Engine, place: Place, image: str, *, publish: bool) -> list[str]:
    """Have all replicas of a revision running; returns the ids of those that were started now.

    Replicas beyond their count are left to the caller, who takes them out of the traffic first.

    Args:
        publish: without a gateway, give the container the deployment's port.

    Raises:
        PortInUse: the deployment's port is taken.
        StartFailed: the engine cannot start a container.
    """
    left = {str(number): number for number in range(1, place.replicas + 1)}
    started = []
    for container in engine.api.containers(all=True, filters=place.filters):
        labels = container["Labels"]
        replica = labels[keys.REPLICA]
        if int(replica) > place.replicas:
            continue
        fits = labels.get(keys.BUNDLE) == place.revision.bundle
        fits = fits and (place.behind_gateway or not publish or labels.get(keys.PUBLISHED) == "yes")
        if not fits:
            stop_containers(engine, [container], drain_seconds(place.revision))
            continue
        del left[replica]
        if container["State"] not in ("running", "restarting"):
            _start(engine, place, container["Id"])
            started.append(container["Id"])
    publish = publish and not place.behind_gateway
    return [*started, *(_launch(engine, place, image, number, publish=publish) for number in left.values())]


def wait_ready(engine: Engine, place: Place, containers: Iterable[str]) -> None:
    """Wait until containers accept requests.

    Raises:
        StartFailed: one of them ended, or the time is over; with the end of its log.
    """
    for container in containers:
        failure = partial(_failed, engine, place, container)
        restarts = None

        def ready(container: str = container, failure: Callable[[str], StartFailed] = failure) -> bool:
            nonlocal restarts
            found = inspected(engine, container)
            if found is None:
                raise failure("its container was removed")
            restarts = found["RestartCount"] if restarts is None else restarts
            if found["RestartCount"] > restarts or found["State"]["Status"] not in ("running", "created"):
                why = f"its container ended with status {found['State']['ExitCode']}"
                if found["State"].get("OOMKilled"):
                    why = "its container ran out of memory; give it more with docker.memory"
                raise failure(why)
            return is_ready(engine, found)

        wait_until_ready(ready, failure, limit=place.revision.settings.ready_seconds, poll=_POLL_SECONDS)


def inspected(engine: Engine, container: str) -> dict[str, Any] | None:
    """What the engine knows of a container, None when it is gone."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        found: dict[str, Any] = engine.api.inspect_container(container)
        return found
    return None


def replica_status(engine: Engine, container: Mapping[str, Any]) -> ReplicaStatus:
    """What an inspected container does now."""
    ready = is_ready(engine, container)
    return ReplicaStatus(
        ready=ready,
        failed=False,
        pid=container["State"]["Pid"],
        since=_started_at(container),
        detail="" if ready else _why_not(container),
    )


def is_ready(engine: Engine, container: Mapping[str, Any]) -> bool:
    """Whether an inspected container accepts requests now.

    The engine asks only every few seconds, so a container that it has not found healthy yet is asked here.
    """
    state = container["State"]
    if state["Status"] != "running":
        return False
    if state.get("Health", {}).get("Status") == "healthy":
        return True
    return execute(engine, container["Id"], _HEALTH)[0] == 0


def execute(
    engine: Engine, container: str, command: list[str], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command in a container; returns its exit status (-1 when the container ended) and its output."""
    from docker.errors import APIError

    try:
        made = engine.api.exec_create(container, command, environment=dict(environment or {}))
        output = engine.api.exec_start(made["Id"])
        status = engine.api.exec_inspect(made["Id"])["ExitCode"]
    except APIError as error:
        # The container is gone, stopped, or restarting.
        if error.status_code in (404, 409, 500):
            return -1, reason(error)
        raise
    return -1 if status is None else int(status), output.decode(errors="replace")


def ask_server(engine: Engine, container: str, path: str, order: bytes) -> bytes | None:
    """POST an order to an administrative address of the server in a container; None when it does not answer."""
    command = [layout.PYTHON, "-I", "-S", f"{layout.APP}/mlflow_deploy/serving/ask.py", path]
    status, output = execute(engine, container, command, {ORDER: order.decode()})
    return base64.b64decode(output) if status == 0 else None


def stop_containers(engine: Engine, containers: Iterable[Mapping[str, Any]], seconds: float) -> None:
    """Drain, stop and remove containers; those that are gone are no error.

    Args:
        seconds: what their requests in flight may take.
    """
    from docker.errors import APIError, NotFound
    from requests.exceptions import ConnectionError as NoAnswer
    from requests.exceptions import ReadTimeout

    stopping = [str(container["Id"]) for container in containers]
    for container in stopping:
        # The images' own stop signal, so that the engine does not start it again; all of them drain at once.
        try:
            engine.api.kill(container, signal="SIGTERM")
        except APIError as error:
            if error.status_code not in (404, 409):
                raise
    deadline = time.monotonic() + seconds + _STOP_SECONDS
    for container in stopping:
        with contextlib.suppress(NotFound, NoAnswer, ReadTimeout):
            engine.api.wait(container, timeout=max(0.1, deadline - time.monotonic()))
    remove_all(engine, [{"Id": container} for container in stopping])


def remove_all(engine: Engine, containers: Iterable[Mapping[str, Any]]) -> None:
    """Kill and remove containers that serve nobody."""
    from docker.errors import APIError

    for container in containers:
        try:
            engine.api.remove_container(container["Id"], force=True)
        except APIError as error:
            if error.status_code not in (404, 409):
                raise


def grpc_port(record: DeploymentRecord) -> int:
    """The port of gRPC without a gateway, on the deployment's address."""
    return record.stable.settings.serving.grpc_port or record.port + 1


def drain_seconds(revision: RevisionRecord) -> float:
    """What requests in flight of a revision may take when it is stopped."""
    serving = revision.settings.serving
    return serving.drain_seconds + serving.drain_delay_seconds


def log_tail(engine: Engine, container: str) -> str:
    """The last lines of a container's log on one line."""
    from docker.errors import APIError

    with contextlib.suppress(APIError):
        lines = engine.api.logs(container, tail=_TAIL_LINES).decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines)
    return ""


# --- details -----------------------------------------------------------------------------------------------


class _NoGpuError(StartFailed):
    """The engine has no GPU to give."""


def _started_at(container: Mapping[str, Any]) -> float:
    """When an inspected container was started, in seconds since the epoch."""
    text = container["State"]["StartedAt"]
    # Nanoseconds, of which Python reads six digits.
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{rest[:6] or '0'}+00:00").timestamp()


def _why_not(container: Mapping[str, Any]) -> str:
    """Why an inspected container accepts no requests."""
    current = container["State"]
    if current["Status"] == "running":
        return "its container runs but does not answer yet"
    ended = f"its container ended with status {current['ExitCode']}"
    if current["Status"] == "restarting":
        return f"{ended} and is started again"
    return f"{ended}; `mlflow-deploy up` starts it"


def _launch(engine: Engine, place: Place, image: str, replica: int, *, publish: bool) -> str:
    """Make and start a container; without a GPU on the CPU, where that is allowed."""
    container = _create(engine, place, image, replica, publish=publish, gpu=place.spec.device == "gpu")
    try:
        _start(engine, place, container)
    except _NoGpuError:
        if place.spec.gpu_fallback != "cpu":
            raise
        engine.api.remove_container(container, force=True)
        container = _create(engine, place, image, replica, publish=publish, gpu=False)
        _start(engine, place, container)
    return container


def _create(engine: Engine, place: Place, image: str, replica: int, *, publish: bool, gpu: bool) -> str:
    names, record, revision, spec = place.names, place.record, place.revision, place.spec
    serving, wanted = _serving(place)
    named, capture = revision.spec.get("serving", {}), captured(revision.settings)
    if capture.hash_key.startswith("file:"):
        named = {**named, _HASH_KEY: capture.hash_key.removeprefix("file:")}
        wanted.append(_HASH_KEY)
        capture = replace(capture, hash_key=f"file:{FILES}/{_HASH_KEY}")
    settings = {"deployment": record.name, "revision": revision.number, "serving": serving}
    settings |= {"data": DATA, "capture": capture}
    settings["control"] = secrets.token_urlsafe(32)
    labels = names.labels(
        record.name,
        "revision",
        revision=str(revision.number),
        replica=str(replica),
        bundle=revision.bundle,
        published="yes" if publish else "no",
        record=msgspec.json.encode(record).decode(),
    )
    ports = _ports(place, serving) if publish else {}
    host = {**hardened(spec), "network_mode": names.network(record.name), "port_bindings": ports}
    host |= limits(spec, gpu=gpu)
    data = names.data(record.name)
    engine.api.create_volume(data, labels=names.labels(record.name, "data"))
    host["binds"] = {data: {"bind": DATA, "mode": "rw"}}
    if wanted:
        volume = names.files(record.name, revision.number)
        engine.api.create_volume(
            volume, labels=names.labels(record.name, "files", revision=str(revision.number))
        )
        host["binds"][volume] = {"bind": FILES, "mode": "rw"}
    endpoint = engine.api.create_endpoint_config(aliases=[alias(revision.number, replica)])
    environment = {**spec.env, layout.SETTINGS_VARIABLE: msgspec.json.encode(settings).decode()}
    if spec.device == "gpu":
        environment[layout.FALLBACK_VARIABLE] = spec.gpu_fallback
    container: str = engine.api.create_container(
        image,
        name=names.replica(record.name, revision.number, replica),
        labels=labels,
        environment=environment,
        user=spec.user or None,
        ports=[int(port.partition("/")[0]) for port in ports],
        host_config=engine.api.create_host_config(**host),
        networking_config=engine.api.create_networking_config({names.network(record.name): endpoint}),
    )["Id"]
    open_folder(engine, container, DATA, spec.user)
    if wanted:
        fill(engine, container, named, wanted)
    if spec.network:
        engine.api.connect_container_to_network(container, spec.network)
    return container


def _start(engine: Engine, place: Place, container: str) -> None:
    from docker.errors import APIError

    try:
        engine.api.start(container)
    except APIError as error:
        why = reason(error)
        if any(words in why for words in PORT_TAKEN):
            raise PortInUse(place.record.host, place.record.port) from error
        if place.spec.device == "gpu" and any(words in why for words in _NO_GPU):
            why = f"the engine offers no GPU ({why}); set docker.gpu_fallback=cpu to run without one"
            raise _NoGpuError(place.record.name, place.revision.number, why) from error
        raise StartFailed(place.record.name, place.revision.number, why) from error


def _serving(place: Place) -> tuple[dict[str, Any], list[str]]:
    """(settings of the server as it finds things in its container, the files that it needs there)."""
    serving = dict(place.revision.spec.get("serving", {}))
    if place.behind_gateway:
        # The gateway speaks TLS for it.
        serving |= {"tls_cert": "", "tls_key": "", "tls_client_ca": ""}
    wanted = [key for key in _FILE_KEYS if path_in(serving, key)]
    serving |= {key: f"file:{FILES}/{key}" if key == SEAL_KEY else f"{FILES}/{key}" for key in wanted}
    if serving.get("gpu_provider") == "tensorrt" and not serving.get("engine_cache"):
        serving["engine_cache"] = f"{DATA}/engines"
    if serving.get("grpc"):
        serving["grpc_port"] = layout.GRPC_PORT
    msgspec.convert(serving, ServingSettings)
    return serving, wanted


def _ports(place: Place, serving: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """What a container without gateway publishes: port inside -> address outside."""
    record = place.record
    ports = {f"{layout.PORT}/tcp": (record.host, record.port)}
    if serving.get("grpc"):
        ports[f"{layout.GRPC_PORT}/tcp"] = (record.host, grpc_port(record))
    return ports


def _failed(engine: Engine, place: Place, container: str, why: str) -> StartFailed:
    return StartFailed(place.record.name, place.revision.number, why, log_tail(engine, container))
