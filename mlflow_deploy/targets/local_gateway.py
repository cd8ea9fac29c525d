"""The gateway of a local deployment: Envoy under supervision in front of its revisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy.gateway.gateway import Gateway
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Replica, Traffic
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.settings import ServingSettings
from mlflow_deploy.targets.base import DeploymentRecord
from mlflow_deploy.targets.supervisor import Program, Supervisor

_DRAIN_SECONDS = 30


def program_name(name: str) -> str:
    """Name of the gateway's process."""
    return f"{name}.gateway"


def apply_gateway(
    supervisor: Supervisor,
    record: DeploymentRecord,
    folder: Path,
    addresses: Mapping[int, tuple[int, int]],
) -> None:
    """Start the gateway of a deployment, or change the running one, so that traffic flows as recorded.

    Args:
        folder: the gateway's own folder.
        addresses: revision -> HTTP port and gRPC port (0 for none) of its process on loopback.

    Raises:
        DeployError: Envoy is not installed, refuses the configuration, or does not come up.
    """
    backends = [
        Backend(revision=number, replicas=(Replica("127.0.0.1", http, grpc),))
        for number, (http, grpc) in sorted(addresses.items())
    ]
    traffic = Traffic({number: weight for number, weight in record.weights.items() if weight})
    name = program_name(record.name)
    if name in supervisor.program_names() and supervisor.is_running() and Gateway(folder).ready():
        Gateway(folder).apply(backends, traffic)
        return
    gateway = Gateway.prepare(folder, _spec(record), backends, traffic)
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
    """What clients asked of each revision since the gateway was started."""
    return {number: stats.served for number, stats in Gateway(folder).stats().items()}


def behind_gateway(serving: Mapping[str, Any], grpc_port: int) -> dict[str, Any]:
    """Server settings of a revision behind the gateway, which speaks TLS for it."""
    return {**serving, "tls_cert": "", "tls_key": "", "tls_client_ca": "", "grpc_port": grpc_port}


def _spec(record: DeploymentRecord) -> GatewaySpec:
    serving = record.stable.spec.get("serving", {})
    deadline = serving.get("deadline_seconds", ServingSettings().deadline_seconds)
    return GatewaySpec(
        deployment=record.name,
        host=record.host,
        port=record.port,
        # A deadline of the server ends a request with its own words; the gateway's is the safety net.
        request_timeout_seconds=deadline + 5 if deadline else 0,
        # Predictions change nothing, so they may be asked of another replica.
        repeatable=("/invocations", "/v2", "/inference.GRPCInferenceService/"),
        buffer_bytes=serving.get("max_body_bytes", 10 * 1024 * 1024),
        tls_cert=serving.get("tls_cert", ""),
        tls_key=serving.get("tls_key", ""),
        tls_client_ca=serving.get("tls_client_ca", ""),
    )
