"""Target `docker`: revisions as containers of a Docker engine, local or remote; all state is on the engine.

What a deployment `flights` has there, all with its labels::

    volume    mlflow-deploy.flights.record.00000003   its label is the record; see docker_state
    volume    mlflow-deploy.flights.archive.KEY.…     a release record and the like; stays when it is removed
    volume    mlflow-deploy.port.9500                 keeps its port from others
    network   mlflow-deploy.flights                   its own
    container mlflow-deploy.flights.r2-1              replica 1 of revision 2
    volume    mlflow-deploy.flights.data              captured requests, labels, results of monitors
    volume    mlflow-deploy.flights.r2.files          certificates and token files that its settings name
    container mlflow-deploy.flights.monitor           judges what was captured
    container mlflow-deploy.flights.gateway           Envoy, with gateway=envoy, and a volume of the same name

With a gateway, it has the deployment's port and moves the traffic. Without one, the only container of the
stable revision has the port, and an update hands it over by stopping the old container first.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError, MissingExtra, TargetError
from mlflow_deploy.files import write_atomic
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.images import layout
from mlflow_deploy.images.builder import build_image
from mlflow_deploy.images.catalog import image_status
from mlflow_deploy.images.engine import Engine, connect, find_image, reason
from mlflow_deploy.images.spec import ImageSpec, parse_image_spec
from mlflow_deploy.targets import docker_archive as archive
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets import docker_state as state
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord, Orphan, RevisionRecord, RevisionStatus
from mlflow_deploy.targets.docker_containers import (
    Place,
    ask_server,
    docker_spec,
    drain_seconds,
    ensure_running,
    grpc_port,
    inspected,
    remove_all,
    replica_status,
    stop_containers,
    wait_ready,
)
from mlflow_deploy.targets.docker_data import put_labels
from mlflow_deploy.targets.docker_gateway import (
    apply_gateway,
    gateway_answers,
    gateway_stats,
    gateway_weights,
    remove_gateway,
)
from mlflow_deploy.targets.docker_hand import attach_hand, remove_hand
from mlflow_deploy.targets.docker_logs import read_logs
from mlflow_deploy.targets.docker_monitor import apply_monitor, ask_monitor, monitor_state
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.targets.docker_orphans import bundles_in_use, find_orphans, left_locks, remove_orphan
from mlflow_deploy.targets.replicas import check_gateway_settings, combined, label_file

NAMESPACE_VARIABLE = "MLFLOW_DEPLOY_DOCKER_NAMESPACE"
"""Environment variable that keeps the deployments of several teams on one engine apart."""

_LOG = logging.getLogger("mlflow_deploy")


class DockerTarget(Target):
    """Revisions as containers of the engine that DOCKER_HOST or the current Docker context names."""

    name = "docker"
    capabilities = frozenset(
        {
            Capability.DURABLE,
            Capability.RESTARTS,
            Capability.TRAFFIC_SPLIT,
            Capability.RECORDING,
            Capability.MONITORS,
        }
    )

    def __init__(self, home: Path | None = None, *, namespace: str | None = None) -> None:
        """Open the target; the engine is asked at the first call of a method.

        Args:
            home: folder for locks and for what was found out once; nothing of the state is in it.
            namespace: keeps deployments apart; None = that of the environment.

        Raises:
            MissingExtra: the package `docker` is not installed.
        """
        if importlib.util.find_spec("docker") is None:
            raise MissingExtra("The target docker", "docker", missing="docker")
        self._home = home or state_home()
        self._folder = self._home / "docker"
        self._names = Names(os.environ.get(NAMESPACE_VARIABLE, "") if namespace is None else namespace)

    # --- records ---

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        return state.hold(self._folder, self._names, name)

    def names(self) -> list[str]:
        wanted = self._names.filters()
        with connect() as engine:
            found = [
                *engine.api.containers(all=True, filters=wanted),
                *engine.api.networks(filters=wanted),
                *(volume for volume in state.volumes(engine, wanted)),
            ]
        return sorted(
            {each["Labels"][keys.DEPLOYMENT] for each in found if each["Labels"][keys.ROLE] != "lock"}
        )

    def read_record(self, name: str) -> DeploymentRecord | None:
        with connect() as engine:
            return state.read_record(engine, self._names, name) or self._recovered(engine, name)

    def write_record(self, record: DeploymentRecord) -> None:
        with connect() as engine:
            state.write_record(engine, self._names, record)

    def remove(self, name: str) -> None:
        remove_hand(self._home, self._names, name)
        with connect() as engine:
            record = state.read_record(engine, self._names, name)
            if record is not None and record.phase == "ready":
                # A kill in the middle must not leave half of a deployment that looks whole.
                state.write_record(engine, self._names, msgspec.structs.replace(record, phase="deleting"))
            remove_gateway(engine, self._names, name)
            containers = engine.api.containers(all=True, filters=self._names.filters(name))
            seconds = max((drain_seconds(each) for each in record.revisions), default=0) if record else 0
            stop_containers(engine, containers, seconds)
            self._remove_network(engine, name)
            for role in ("files", "data", "gateway", "control", "address"):
                for volume in state.volumes(engine, self._names.filters(name, role)):
                    state.remove_volume(engine, volume["Name"])
            state.remove_records(engine, self._names, name)

    def read_archive(self, name: str, *keys: str) -> dict[str, bytes]:
        with connect() as engine:
            return archive.read(engine, self._names, name, *keys)

    def write_archive(self, name: str, key: str, document: bytes) -> None:
        with connect() as engine:
            archive.write(engine, self._names, name, key, document)

    def archive_names(self) -> list[str]:
        with connect() as engine:
            return archive.names_of(engine, self._names)

    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        with connect() as engine:
            return state.reserve_address(engine, self._names, name, host, port)

    # --- containers ---

    def start(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> RevisionStatus:
        place = Place(self._names, record, revision)
        check_gateway_settings(record.name, revision.settings, record.gateway)
        with connect() as engine:
            try:
                image = self._image(engine, bundle, place.revision)
                self._ensure_network(engine, record.name)
                others = engine.api.containers(filters=self._names.filters(record.name, "revision"))
                taken = any(each["Labels"].get(keys.PUBLISHED) == "yes" for each in others)
                ensure_running(engine, place, image, publish=not taken)
                containers = engine.api.containers(all=True, filters=place.filters)
                wait_ready(engine, place, [each["Id"] for each in containers])
            except BaseException:
                remove_all(engine, engine.api.containers(all=True, filters=place.filters))
                raise
            return self._status(engine, place, gateway=True)

    def stop(self, name: str, number: int) -> None:
        with connect() as engine:
            record = state.read_record(engine, self._names, name)
            known = record.revisions if record else ()
            seconds = next((drain_seconds(each) for each in known if each.number == number), 0.0)
            stop_containers(engine, self._containers(engine, name, number), seconds)

    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        place = Place(self._names, record, record.revision(number))
        with connect() as engine:
            # A candidate is ready before there is a gateway that could answer.
            behind = place.behind_gateway and bool(record.weights.get(number))
            gateway = not behind or gateway_answers(engine, self._names, record.name)
            return self._status(engine, place, gateway=gateway)

    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        self.check_split(record, record.weights)
        with connect() as engine:
            self._ensure_network(engine, record.name)
            kept = [number for number in record.kept if self._containers(engine, record.name, number)]
            wanted = [*record.wanted, *kept]
            if not self.can_split(record):
                # The port is free for the new revision only when the old one has let go of it.
                self._stop_others(engine, record, wanted)
            for number in (number for number in wanted if number in bundles):
                place = Place(self._names, record, record.revision(number))
                image = self._image(engine, bundles[number], place.revision)
                started = ensure_running(engine, place, image, publish=True)
                if number not in kept:
                    wait_ready(engine, place, started)
            if self.can_split(record):
                spec = image_spec(record.stable)
                apply_gateway(engine, self._names, record, wanted, spec, _LOG.info)
                self._stop_others(engine, record, wanted)
            self._apply_monitor(engine, record)

    def grpc_address(self, record: DeploymentRecord) -> str:
        if not record.stable.settings.serving.grpc:
            return ""
        port = record.port if self.can_split(record) else grpc_port(record)
        return f"{record.host}:{port}"

    def scrape_addresses(self, record: DeploymentRecord) -> dict[int, tuple[str, ...]]:
        # These names resolve in the deployment's network, which Prometheus' own container has to join.
        return {
            number: tuple(
                f"{self._names.replica(record.name, number, replica)}:{layout.PORT}"
                for replica in range(1, record.replica_count(number) + 1)
            )
            for number in (*record.wanted, *record.kept)
        }

    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        if not self.can_split(record):
            return {}
        with connect() as engine:
            return gateway_stats(engine, self._names, record.name)

    def ask(self, record: DeploymentRecord, number: int, path: str, order: bytes) -> dict[str, bytes]:
        if not self.can_split(record):
            return {}
        answered = {}
        with connect() as engine:
            for container in self._containers(engine, record.name, number):
                if container["State"] == "running":
                    body = ask_server(engine, container["Id"], path, order)
                    if body is not None:
                        answered[container["Id"]] = body
        return answered

    def add_labels(self, record: DeploymentRecord, content: bytes) -> None:
        with connect() as engine:
            running = engine.api.containers(filters=self._names.filters(record.name, "revision"))
            if not running:
                raise TargetError(
                    f"No container of deployment {record.name!r} runs that could take labels",
                    hint="Start it with `mlflow-deploy up`",
                )
            user = docker_spec(record.stable).user
            put_labels(engine, str(running[0]["Id"]), label_file(), content, user)

    def ask_monitor(self, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        with connect() as engine:
            return ask_monitor(engine, self._names, record, arguments)

    def monitor_state(self, record: DeploymentRecord) -> str:
        with connect() as engine:
            return monitor_state(engine, self._names, record)

    def control(self, name: str) -> str:
        with connect() as engine:
            return state.read_control(engine, self._names, name)

    def set_control(self, name: str, word: str) -> None:
        with connect() as engine:
            state.write_control(engine, self._names, name, word)

    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        with connect() as engine:
            containers = self._containers(engine, name, number)
            yield from read_logs(engine, [str(each["Id"]) for each in containers], follow=follow)

    # --- what is not needed ---

    def forget(self, name: str, number: int) -> None:
        self.stop(name, number)
        with connect() as engine:
            state.remove_volume(engine, self._names.files(name, number))

    def orphan_names(self) -> list[str]:
        with connect() as engine:
            locks = left_locks(engine, self._names)
        return sorted({*self.names(), *locks})

    def orphans(self, name: str) -> list[Orphan]:
        record = self.read_record(name)
        with connect() as engine:
            return list(find_orphans(engine, self._names, name, record))

    def remove_orphan(self, orphan: Orphan) -> None:
        with connect() as engine:
            remove_orphan(engine, self._names, orphan)

    def bundles_in_use(self) -> set[str]:
        with connect() as engine:
            return bundles_in_use(engine)

    def image_of(self, revision: RevisionRecord, bundle: Bundle) -> dict[str, str]:
        return image_status(bundle, image_spec(revision), _LOG.info)

    # --- details ---

    def _apply_monitor(self, engine: Engine, record: DeploymentRecord) -> None:
        """Have the monitors run; what keeps them from it is reported and keeps nothing from serving."""
        spec, bundles = image_spec(record.stable), self._home / "bundles"
        try:
            apply_monitor(engine, self._names, record, bundles, spec, _LOG.info)
            attach_hand(self._home, self._names, record, _LOG.info)
        except DeployError as error:
            _LOG.warning("The monitors of %s do not run: %s", record.name, error.text)

    def _status(self, engine: Engine, place: Place, *, gateway: bool) -> RevisionStatus:
        number = place.revision.number
        listed = self._containers(engine, place.record.name, number)
        containers = [found for each in listed if (found := inspected(engine, each["Id"]))]
        if not containers:
            return RevisionStatus(number=number, state="stopped")
        replicas = [replica_status(engine, container) for container in containers]
        return combined(number, place.replicas, replicas, gateway_answers=gateway)

    def _containers(self, engine: Engine, name: str, number: int) -> list[Mapping[str, Any]]:
        """The containers of a revision, whatever they do."""
        wanted = self._names.filters(name, "revision", number)
        found: list[Mapping[str, Any]] = engine.api.containers(all=True, filters=wanted)
        return found

    def _image(self, engine: Engine, bundle: Bundle, revision: RevisionRecord) -> str:
        """Id of the image of a bundle; built when the engine lacks it, and remembered by its content."""
        spec = image_spec(revision)
        key = hashlib.sha256(f"{bundle.digest} {spec!r}".encode()).hexdigest()
        remembered = self._folder / "images" / key
        if remembered.exists():
            known = remembered.read_text(encoding="ascii")
            if find_image(engine, known) is not None:
                return known
        built = build_image(bundle, spec, _LOG.info)
        remembered.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(remembered, built.id.encode())
        return built.id

    def _ensure_network(self, engine: Engine, name: str) -> None:
        from docker.errors import APIError

        if engine.api.networks(filters=self._names.filters(name, "network")):
            return
        try:
            engine.api.create_network(
                self._names.network(name),
                driver="bridge",
                check_duplicate=True,
                labels=self._names.labels(name, "network"),
            )
        except APIError as error:
            raise TargetError(
                f"The network of deployment {name!r} cannot be made",
                why=reason(error),
                hint="Remove networks that nothing needs with `docker network prune`, or give the engine more "
                "addresses with `default-address-pools` in its configuration",
            ) from error

    def _remove_network(self, engine: Engine, name: str) -> None:
        from docker.errors import NotFound

        for network in engine.api.networks(filters=self._names.filters(name, "network")):
            # A container of somebody else that joined would keep the network from going.
            for container in engine.api.inspect_network(network["Id"]).get("Containers") or {}:
                with contextlib.suppress(NotFound):
                    engine.api.disconnect_container_from_network(container, network["Id"], force=True)
            with contextlib.suppress(NotFound):
                engine.api.remove_network(network["Id"])

    def _stop_others(self, engine: Engine, record: DeploymentRecord, wanted: list[int]) -> None:
        """Drain and stop the containers of all but the wanted revisions, and replicas beyond their count."""
        counts = {str(number): record.replica_count(number) for number in wanted}
        seconds = {str(each.number): drain_seconds(each) for each in record.revisions}
        filters = self._names.filters(record.name, "revision")
        others: dict[str, list[Mapping[str, Any]]] = {}
        for container in engine.api.containers(all=True, filters=filters):
            number = container["Labels"][keys.REVISION]
            if int(container["Labels"][keys.REPLICA]) > counts.get(number, 0):
                others.setdefault(number, []).append(container)
        for number, containers in others.items():
            stop_containers(engine, containers, seconds.get(number, 0.0))

    def _recovered(self, engine: Engine, name: str) -> DeploymentRecord | None:
        """The record from the labels of containers, when it was removed under them (`docker volume prune`).

        Every command of ours removes the record last, so containers without one serve and must not be lost.
        """
        running = engine.api.containers(filters=self._names.filters(name, "revision"))
        if not running:
            return None
        newest = max(running, key=lambda each: int(each["Labels"][keys.REVISION]))
        record = state.decode_record(newest["Labels"][keys.RECORD], newest["Names"][0])
        numbers = {int(each["Labels"][keys.REVISION]) for each in running}
        weights = gateway_weights(engine, self._names, name)
        if not weights and len(numbers) == 1:
            weights = dict.fromkeys(numbers, 100)
        if not weights or not set(weights) <= {each.number for each in record.revisions}:
            return None
        _LOG.warning("The record of %s was removed from the engine; it is read from its containers", name)
        return msgspec.structs.replace(record, phase="ready", weights=weights, candidate=0)


def image_spec(revision: RevisionRecord) -> ImageSpec:
    """How the image of a revision is built; what it does not say comes from the environment.

    Raises:
        ConfigError: a setting of the image is unknown or cannot be used.
    """
    docker = docker_spec(revision)
    given: dict[str, Any] = {"device": docker.device, **docker.image}
    if given["device"] == "gpu":
        given.setdefault("gpu_provider", revision.settings.serving.gpu_provider)
    given |= {key: getattr(docker, key) for key in ("base_image", "repository") if getattr(docker, key)}
    return parse_image_spec(given)
