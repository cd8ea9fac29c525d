"""What a deployment's record asks of its gateway, the same on every target that has one."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_deploy.gateway.spec import GatewaySpec, Mirror, Sticky, Traffic
from mlflow_deploy.targets.base_records import DeploymentRecord

TLS_KEYS = ("tls_cert", "tls_key", "tls_client_ca")
"""Settings of the server whose files the gateway needs, since it speaks TLS for the revisions."""

# Predictions change nothing, so they may be asked of another replica.
_PREDICTIONS = ("/invocations", "/v2", "/inference.GRPCInferenceService/")


def gateway_spec(record: DeploymentRecord, host: str, port: int, tls: Mapping[str, str]) -> GatewaySpec:
    """The gateway by the settings of the stable revision.

    Args:
        host: IP address where it listens.
        port: port where it listens.
        tls: the paths of `TLS_KEYS` as the gateway finds them, empty where there is none.
    """
    settings = record.stable.settings
    envoy, serving = settings.envoy, settings.serving
    timeout = envoy.request_timeout_seconds
    if timeout is None:
        # A deadline of the server ends a request with its own words; the gateway's is the safety net.
        timeout = serving.deadline_seconds + 5 if serving.deadline_seconds else 0
    return GatewaySpec(
        deployment=record.name,
        host=host,
        port=port,
        request_timeout_seconds=timeout,
        idle_timeout_seconds=envoy.idle_timeout_seconds,
        rate_limit=envoy.rate_limit,
        sticky=_sticky(envoy.sticky, envoy.sticky_seconds),
        access_log="-" if envoy.access_log else "",
        repeatable=_PREDICTIONS if envoy.retry_predictions else (),
        buffer_bytes=serving.max_body_bytes,
        max_connections=envoy.max_connections,
        max_requests=envoy.max_requests,
        threads=envoy.threads,
        tls_cert=tls.get("tls_cert", ""),
        tls_key=tls.get("tls_key", ""),
        tls_client_ca=tls.get("tls_client_ca", ""),
    )


def traffic_of(record: DeploymentRecord) -> Traffic:
    """How the revisions share the traffic, and which of them gets copies."""
    copies = next((Mirror(number, percent) for number, percent in record.mirror.items() if percent), None)
    return Traffic({number: weight for number, weight in record.weights.items() if weight}, copies)


def _sticky(setting: str, seconds: int) -> Sticky | None:
    by, _, name = setting.partition(":")
    if by == "header":
        return Sticky(by="header", name=name)
    return Sticky(by="cookie", name=name, cookie_seconds=seconds) if by == "cookie" else None
