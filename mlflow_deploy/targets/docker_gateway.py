"""The gateway of a deployment on Docker: Envoy in a container of its own in front of the revisions."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlflow_deploy.errors import PortInUse, TargetError
from mlflow_deploy.gateway.admin import Admin
from mlflow_deploy.gateway.spec import Backend, Replica
from mlflow_deploy.gateway.stats import CallStats, read_stats
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine, reason
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.targets import docker_agent as agent
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.docker_containers import (
    PORT_TAKEN,
    docker_spec,
    execute,
    log_tail,
    remove_all,
)
from mlflow_deploy.targets.docker_files import fill
from mlflow_deploy.targets.docker_gateway_image import AGENT, ensure_gateway_image
from mlflow_deploy.targets.docker_limits import hardened
from mlflow_deploy.targets.docker_names import Names, alias
from mlflow_deploy.targets.docker_state import remove_volume
from mlflow_deploy.targets.gateway_spec import TLS_KEYS, gateway_spec, traffic_of

Progress = Callable[[str], None]

_COMMAND = [layout.PYTHON, "-m", "mlflow_deploy.targets.docker_agent"]
_QUICK = [layout.PYTHON, "-I", "-S", AGENT]
_UP_SECONDS = 30.0
_POLL_SECONDS = 0.1


class GatewayFailed(TargetError):
    """The gateway's container does not come up, or refuses the traffic it is given."""

    code = "GATEWAY_FAILED"

    def __init__(self, name: str, what: str, why: str) -> None:
        super().__init__(
            f"The gateway of deployment {name!r} fails: {what}",
            why=why,
            hint="The earlier traffic still holds; `mlflow-deploy up` starts a gateway that does not run",
        )


def apply_gateway(
    engine: Engine,
    names: Names,
    record: DeploymentRecord,
    revisions: Sequence[int],
    image_spec: ImageSpec,
    progress: Progress,
) -> None:
    """Start the gateway, or change the running one, so that traffic flows as recorded; loses no request.

    Args:
        revisions: those that run, with or without traffic.

    Raises:
        GatewayFailed: it does not come up or refuses; the earlier traffic holds.
        PortInUse: the deployment's port is taken.
    """
    order = {agent.ORDER: _order(record, revisions)}
    container = _running(engine, names, record.name)
    if container:
        _put_certificates(engine, container, record)
    else:
        image = ensure_gateway_image(engine, image_spec, progress)
        container = _start(engine, names, record, image, order)
    deadline = time.monotonic() + _UP_SECONDS
    while True:
        status, output = execute(engine, container, [*_COMMAND, "apply"], order)
        if status == 0:
            return
        if status == agent.REFUSED:
            told = json.loads(output.strip().splitlines()[-1])
            raise GatewayFailed(record.name, told["what"], told["why"])
        if time.monotonic() > deadline:
            raise GatewayFailed(record.name, "it does not answer", log_tail(engine, container) or output)
        time.sleep(_POLL_SECONDS)


def gateway_answers(engine: Engine, names: Names, name: str) -> bool:
    """Whether the gateway serves."""
    container = _running(engine, names, name)
    return bool(container) and execute(engine, container, [*_QUICK, "alive"])[0] == 0


def gateway_stats(engine: Engine, names: Names, name: str) -> dict[int, CallStats]:
    """What each revision was asked since the gateway was started.

    Raises:
        GatewayFailed: it does not answer.
    """
    container = _running(engine, names, name)
    if not container:
        raise GatewayFailed(name, "it does not run", "")
    stats = read_stats(_Administration(engine, container, name))
    return {number: each.asked for number, each in stats.items()}


def gateway_weights(engine: Engine, names: Names, name: str) -> dict[int, int]:
    """The traffic that the running gateway was last given; empty when there is none."""
    container = _running(engine, names, name)
    status, output = execute(engine, container, [*_COMMAND, "weights"]) if container else (-1, "")
    return {int(number): weight for number, weight in json.loads(output).items()} if status == 0 else {}


def remove_gateway(engine: Engine, names: Names, name: str) -> None:
    """Drain the gateway and remove it with its folder."""
    container = _running(engine, names, name)
    if container:
        execute(engine, container, [*_COMMAND, "drain"])
    remove_all(engine, _containers(engine, names, name))
    remove_volume(engine, names.gateway(name))


class _Administration(Admin):
    """Envoy's administration, asked through the engine; nothing of it is published."""

    def __init__(self, engine: Engine, container: str, name: str) -> None:
        self._engine, self._container, self._name = engine, container, name

    def get(self, path: str, **query: str) -> str:
        """The body of a page."""
        order = {agent.ORDER: path + ("?" + urllib.parse.urlencode(query) if query else "")}
        status, output = execute(self._engine, self._container, [*_QUICK, "page"], order)
        if status != 0:
            raise GatewayFailed(self._name, "its administration does not answer", output[:200])
        return output


# --- details -----------------------------------------------------------------------------------------------


def _containers(engine: Engine, names: Names, name: str) -> Iterable[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = engine.api.containers(all=True, filters=names.filters(name, "gateway"))
    return found


def _running(engine: Engine, names: Names, name: str) -> str:
    """Id of the gateway's container when it runs or is being restarted, or an empty string."""
    return next(
        (
            str(each["Id"])
            for each in _containers(engine, names, name)
            if each["State"] in ("running", "restarting")
        ),
        "",
    )


def _start(
    engine: Engine, names: Names, record: DeploymentRecord, image: str, order: Mapping[str, str]
) -> str:
    """Make the gateway's container anew: its folder too, since what it routed to may be long gone."""
    from docker.errors import APIError

    name, spec = record.name, docker_spec(record.stable)
    remove_all(engine, _containers(engine, names, name))
    remove_volume(engine, names.gateway(name))
    labels = names.labels(name, "gateway")
    engine.api.create_volume(names.gateway(name), labels=labels)
    host = hardened(spec) | {
        "network_mode": names.network(name),
        "port_bindings": {f"{agent.PORT}/tcp": (record.host, record.port)},
        "binds": {names.gateway(name): {"bind": str(agent.FOLDER), "mode": "rw"}},
    }
    endpoint = engine.api.create_endpoint_config(aliases=["gateway"])
    container: str = engine.api.create_container(
        image,
        name=names.gateway(name),
        labels=labels,
        environment=dict(order),
        ports=[agent.PORT],
        host_config=engine.api.create_host_config(**host),
        networking_config=engine.api.create_networking_config({names.network(name): endpoint}),
    )["Id"]
    try:
        _put_certificates(engine, container, record)
        engine.api.start(container)
    except APIError as error:
        why = reason(error)
        remove_all(engine, [{"Id": container}])
        if any(words in why for words in PORT_TAKEN):
            raise PortInUse(record.host, record.port) from error
        raise GatewayFailed(name, "its container does not start", why) from error
    return container


def _order(record: DeploymentRecord, revisions: Sequence[int]) -> str:
    """What the gateway shall do, for the program in its container."""
    backends = []
    for number in sorted(revisions):
        grpc = layout.GRPC_PORT if record.revision(number).settings.serving.grpc else 0
        count = record.replica_count(number)
        replicas = tuple(Replica(alias(number, each), layout.PORT, grpc) for each in range(1, count + 1))
        backends.append(Backend(revision=number, replicas=replicas))
    serving = record.stable.settings.serving
    tls = {key: f"{agent.FOLDER}/{key}" for key in TLS_KEYS if getattr(serving, key)}
    # The address of its container; the engine publishes it where the user wants.
    spec = gateway_spec(record, "0.0.0.0", agent.PORT, tls)  # noqa: S104
    document = {
        "spec": dataclasses.asdict(spec),
        "backends": [dataclasses.asdict(backend) for backend in backends],
        "traffic": dataclasses.asdict(traffic_of(record)),
    }
    return json.dumps(document)


def _put_certificates(engine: Engine, container: str, record: DeploymentRecord) -> None:
    serving = record.stable.spec.get("serving", {})
    if wanted := [key for key in TLS_KEYS if serving.get(key)]:
        fill(engine, container, serving, wanted, folder=str(agent.FOLDER))
