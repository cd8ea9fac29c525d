"""The files that Envoy reads: bootstrap, clusters (CDS), listener (LDS), routes (RDS); pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mlflow_deploy.gateway.clusters import clusters
from mlflow_deploy.gateway.listener import LISTENER, listener
from mlflow_deploy.gateway.routes import ROUTES, routes
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Traffic

CDS, LDS, RDS, BOOTSTRAP = "cds.json", "lds.json", "rds.json", "bootstrap.json"
ADMIN_SOCKET = "admin.sock"
_TYPE = "type.googleapis.com/envoy."

VERSION_STATISTICS = {
    CDS: "cluster_manager.cds",
    LDS: "listener_manager.lds",
    RDS: f"http.{LISTENER}.rds.{ROUTES}",
}
"""File -> prefix of the statistics that tell which version of it Envoy has taken."""


def bootstrap(spec: GatewaySpec) -> dict[str, Any]:
    """What Envoy is started with; all paths are relative to the gateway's folder, its working directory."""
    admin: dict[str, Any] = {"pipe": {"path": f"./{ADMIN_SOCKET}", "mode": 0o600}}
    if spec.admin_port:
        admin = {"socket_address": {"address": spec.admin_host, "port_value": spec.admin_port}}
    monitor = _TYPE + "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    return {
        "node": {"id": spec.deployment, "cluster": spec.deployment},
        "admin": {"address": admin},
        "dynamic_resources": {
            "cds_config": {"path_config_source": {"path": f"./{CDS}"}},
            "lds_config": {"path_config_source": {"path": f"./{LDS}"}},
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": monitor,
                        "max_active_downstream_connections": spec.max_connections,
                    },
                }
            ]
        },
        # Histograms are brought up to date when they are read, not every five seconds.
        "stats_flush_on_admin": True,
    }


def cluster_document(spec: GatewaySpec, backends: Sequence[Backend], traffic: Traffic) -> dict[str, Any]:
    """The cluster discovery file."""
    return _versioned(clusters(spec, backends, traffic))


def listener_document(spec: GatewaySpec) -> dict[str, Any]:
    """The listener discovery file."""
    return _versioned([listener(spec)])


def route_document(spec: GatewaySpec, backends: Sequence[Backend], traffic: Traffic) -> dict[str, Any]:
    """The route discovery file."""
    return _versioned(routes(spec, backends, traffic))


def with_clusters_of(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The cluster document `new` with those clusters of `old` added that it lacks."""
    names = {cluster["name"] for cluster in new["resources"]}
    kept = [cluster for cluster in old["resources"] if cluster["name"] not in names]
    return _versioned([*new["resources"], *kept]) if kept else new


def static_bootstrap(cds: dict[str, Any], lds: dict[str, Any], rds: dict[str, Any]) -> dict[str, Any]:
    """The same configuration in one document, which Envoy can be asked to check."""
    listeners = json.loads(json.dumps(lds["resources"]))
    for one in listeners:
        manager = one["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["rds"]
        manager["route_config"] = {key: value for key, value in rds["resources"][0].items() if key != "@type"}
    return {
        "static_resources": {
            "clusters": [_untyped(cluster) for cluster in cds["resources"]],
            "listeners": [_untyped(one) for one in listeners],
        }
    }


def encode(document: dict[str, Any]) -> bytes:
    """The document as the bytes of its file."""
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _versioned(resources: list[dict[str, Any]]) -> dict[str, Any]:
    """A discovery document whose version is the digest of its content."""
    text = json.dumps(resources, sort_keys=True)
    return {"version_info": hashlib.sha256(text.encode()).hexdigest()[:16], "resources": resources}


def _untyped(resource: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resource.items() if key != "@type"}
