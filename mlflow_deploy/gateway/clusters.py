"""Envoy clusters: the replicas of each revision, their health checks, ejection and limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from mlflow_deploy.gateway.names import ClusterName
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Replica, Traffic

_TYPE = "type.googleapis.com/envoy."
_CONNECT_SECONDS = 1
# Below the 30 s after which the scoring server closes an idle connection: a request that is sent on a
# connection while the server closes it cannot be told from one that was being computed.
_IDLE_SECONDS = 10
_HEALTH_CHECK_SECONDS = 1
_EJECTION_SECONDS = 5


def clusters(spec: GatewaySpec, backends: Iterable[Backend], traffic: Traffic) -> list[dict[str, Any]]:
    """Resources of the cluster discovery file, in the order of the revisions."""
    resources = []
    for backend in sorted(backends, key=lambda backend: backend.revision):
        mirrored = traffic.mirror is not None and traffic.mirror.revision == backend.revision
        for mirror in (False, True) if mirrored else (False,):
            for grpc in (False, True) if backend.grpc else (False,):
                name = ClusterName(backend.revision, grpc=grpc, mirror=mirror)
                resources.append(_cluster(spec, backend, name))
    return resources


def _cluster(spec: GatewaySpec, backend: Backend, name: ClusterName) -> dict[str, Any]:
    limits = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), spec.max_requests
    )
    named = any(not _is_address(replica.host) for replica in backend.replicas)
    cluster: dict[str, Any] = {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": str(name),
        "type": "STRICT_DNS" if named else "STATIC",
        "connect_timeout": f"{_CONNECT_SECONDS}s",
        # Maglev keeps a sticky value with its replica; otherwise the less busy of two replicas is taken.
        "lb_policy": "MAGLEV" if spec.sticky else "LEAST_REQUEST",
        "common_lb_config": {
            # Only when no replica is healthy are all of them tried: a busy server may miss its health checks.
            "healthy_panic_threshold": {"value": 1},
            # Otherwise a replica that is ejected goes on getting requests for up to a second.
            "update_merge_window": "0s",
        },
        "metadata": {"filter_metadata": {"mlflow_deploy": {"revision": backend.revision}}},
        "load_assignment": {
            "cluster_name": str(name),
            "endpoints": [
                {"lb_endpoints": [_endpoint(replica, grpc=name.grpc) for replica in backend.replicas]}
            ],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": f"{_IDLE_SECONDS}s"},
                "explicit_http_config": {
                    "http2_protocol_options" if name.grpc else "http_protocol_options": {}
                },
            }
        },
        "health_checks": [_health_check()],
        "outlier_detection": _ejection(),
        "circuit_breakers": {"thresholds": [limits]},
    }
    if named:
        cluster |= {"dns_refresh_rate": "5s", "dns_lookup_family": "V4_PREFERRED"}
    if backend.tls:
        cluster["transport_socket"] = _tls(backend, http2=name.grpc)
    return cluster


def _endpoint(replica: Replica, *, grpc: bool) -> dict[str, Any]:
    port = replica.grpc_port if grpc else replica.port
    endpoint: dict[str, Any] = {
        "address": {"socket_address": {"address": replica.host, "port_value": port}},
    }
    if grpc:
        endpoint["health_check_config"] = {"port_value": replica.port}
    return {"endpoint": endpoint}


def _health_check() -> dict[str, Any]:
    """GET /ping every second; two failures take a replica out, one success brings it back."""
    return {
        "timeout": f"{_HEALTH_CHECK_SECONDS}s",
        "interval": f"{_HEALTH_CHECK_SECONDS}s",
        "no_traffic_interval": f"{_HEALTH_CHECK_SECONDS}s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/ping"},
    }


def _ejection() -> dict[str, Any]:
    """Take out replicas that break connections or say 502, 503 or 504 again and again.

    Answers of 500 do not count: they come from the model, which fails on the same request in every replica.
    """
    return {
        "interval": "1s",
        "base_ejection_time": f"{_EJECTION_SECONDS}s",
        "max_ejection_time": "60s",
        # When the last one is out, all of them are tried: one that was ejected may have come back.
        "max_ejection_percent": 100,
        "split_external_local_origin_errors": True,
        # Fewer than a request has tries, so that its last ones go elsewhere.
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        # Such a replica may well answer /ping.
        "successful_active_health_check_uneject_host": False,
    }


def _tls(backend: Backend, *, http2: bool) -> dict[str, Any]:
    context: dict[str, Any] = {"alpn_protocols": ["h2" if http2 else "http/1.1"]}
    if backend.tls_ca:
        context["validation_context"] = {"trusted_ca": {"filename": backend.tls_ca}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": context,
            "auto_host_sni": True,
        },
    }


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
