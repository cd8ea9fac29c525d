"""The gateway of a local deployment: Envoy under supervision in front of its revisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_deploy.gateway.gateway import Gateway
from mlflow_deploy.gateway.spec import Backend, Replica
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.gateway_spec import TLS_KEYS, gateway_spec, traffic_of
from mlflow_deploy.targets.network import numeric
from mlflow_deploy.targets.supervisor import Program, Supervisor

_DRAIN_SECONDS = 30


def program_name(name: str) -> str:
    """Name of the gateway's process."""
    return f"{name}.gateway"


def apply_gateway(
    supervisor: Supervisor,
    record: DeploymentRecord,
    folder: Path,
    addresses: Mapping[int, Sequence[tuple[int, int]]],
) -> None:
    """Start the gateway of a deployment, or change the running one, so that traffic flows as recorded.

    Args:
        folder: the gateway's own folder.
        addresses: revision -> HTTP port and gRPC port (0 for none) of each of its replicas on loopback.

    Raises:
        DeployError: Envoy is not installed, refuses the configuration, or does not come up.
    """
    backends = [
        Backend(revision=number, replicas=tuple(Replica("127.0.0.1", http, grpc) for http, grpc in replicas))
        for number, replicas in sorted(addresses.items())
    ]
    traffic = traffic_of(record)
    serving = record.stable.settings.serving
    tls = {key: getattr(serving, key) for key in TLS_KEYS}
    spec = gateway_spec(record, numeric(record.host), record.port, tls)
    name = program_name(record.name)
    if name in supervisor.program_names() and supervisor.is_running() and Gateway(folder).ready():
        Gateway(folder).apply(backends, traffic, spec=spec)
        return
    gateway = Gateway.prepare(folder, spec, backends, traffic)
    supervisor.add(
        Program(
            name=name,
            command=tuple(gateway.command()),
            log=folder.parent / "logs" / "gateway.log",
            stop_seconds=_DRAIN_SECONDS,
        )
    )
    gateway.wait_ready()


def drain_gateway(folder: Path) -> None:
    """Let a running gateway answer what is in flight and take nothing new; a dead one has nothing to drain."""
    if gateway_ready(folder):
        Gateway(folder).drain(_DRAIN_SECONDS)


def gateway_ready(folder: Path) -> bool:
    """Whether the gateway in a folder serves."""
    return (folder / "spec.json").exists() and Gateway(folder).ready()


def gateway_stats(folder: Path) -> dict[int, CallStats]:
    """What each revision was asked since the gateway was started."""
    return {number: stats.asked for number, stats in Gateway(folder).stats().items()}


def behind_gateway(serving: ServingSettings) -> ServingSettings:
    """Server settings of a revision behind the gateway, which speaks TLS for it."""
    return replace(serving, tls_cert="", tls_key="", tls_client_ca="")
