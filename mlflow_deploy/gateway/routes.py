"""Envoy routes: weights, the mirror, the header that forces a revision, and what may be tried again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_deploy.gateway.names import ClusterName
from mlflow_deploy.gateway.spec import ANSWERED_BY_HEADER, REVISION_HEADER, Backend, GatewaySpec, Traffic

ROUTES = "traffic"
"""Name of the route table."""

RATE_LIMIT = "envoy.filters.http.local_ratelimit"
_TYPE = "type.googleapis.com/envoy."
# Nothing of the request has been read by a server when these happen.
_NOT_SENT = "connect-failure,refused-stream,reset-before-request"
# The connection broke before the answer began; a server may have computed it.
_NOT_ANSWERED = f"{_NOT_SENT},reset"
_RETRIES = 2


def routes(spec: GatewaySpec, backends: Sequence[Backend], traffic: Traffic) -> list[dict[str, Any]]:
    """Resources of the route discovery file: one table for all hosts.

    Order matters, the first match wins: a forced revision, a revision that is not there, then the weights.
    """
    ordered = sorted(backends, key=lambda backend: backend.revision)
    by_number = {backend.revision: backend for backend in ordered}
    table: list[dict[str, Any]] = []
    for number in by_number:
        exact = {"name": REVISION_HEADER, "string_match": {"exact": str(number)}}
        table += _destination(spec, by_number, {number: 100}, traffic, [exact])
    known = ", ".join(map(str, by_number))
    table.append(
        {
            "match": {"prefix": "/", "headers": [{"name": REVISION_HEADER, "present_match": True}]},
            "direct_response": {
                "status": 404,
                "body": {
                    "inline_string": f"The header X-Revision names a revision that does not run; there are: {known}"
                },
            },
        }
    )
    table += _destination(spec, by_number, traffic.weights, traffic, [])
    return [
        {
            "@type": _TYPE + "config.route.v3.RouteConfiguration",
            "name": ROUTES,
            "virtual_hosts": [{"name": "deployment", "domains": ["*"], "routes": table}],
        }
    ]


def _destination(
    spec: GatewaySpec,
    backends: Mapping[int, Backend],
    weights: Mapping[int, int],
    traffic: Traffic,
    headers: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Routes for requests with these headers, by how often they may be tried: gRPC, GET, repeatable, others."""
    grpc_weights = {number: weight for number, weight in weights.items() if backends[number].grpc}
    reading = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    found = []
    if any(grpc_weights.values()):
        match = {"prefix": "/", "grpc": {}, "headers": headers}
        action = _action(spec, backends, grpc_weights, traffic, _NOT_SENT, grpc=True)
        found.append(_limited(spec, {"match": match, "route": action}))
    else:
        match = {"prefix": "/", "grpc": {}, "headers": headers}
        body = {"inline_string": "The deployment does not speak gRPC; set serving.grpc"}
        found.append({"match": match, "direct_response": {"status": 404, "body": body}})
    once = _action(spec, backends, weights, traffic, _NOT_SENT, grpc=False)
    again = _action(spec, backends, weights, traffic, _NOT_ANSWERED, grpc=False)
    found.append({"match": {"prefix": "/", "headers": [*headers, reading]}, "route": again})
    for prefix in spec.repeatable:
        found.append(_limited(spec, {"match": {"prefix": prefix, "headers": headers}, "route": again}))
    found.append(_limited(spec, {"match": {"prefix": "/", "headers": headers}, "route": once}))
    return found


def _action(
    spec: GatewaySpec,
    backends: Mapping[int, Backend],
    weights: Mapping[int, int],
    traffic: Traffic,
    retry_on: str,
    *,
    grpc: bool,
) -> dict[str, Any]:
    shares: dict[str, Any] = {
        "clusters": [
            {
                "name": str(ClusterName(number, grpc=grpc)),
                "weight": weight,
                "response_headers_to_add": [answered_by(str(number))],
            }
            for number, weight in sorted(weights.items())
        ]
    }
    action: dict[str, Any] = {
        "weighted_clusters": shares,
        "timeout": f"{spec.request_timeout_seconds}s",
        "retry_policy": {
            "retry_on": retry_on,
            "num_retries": _RETRIES,
            "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": 3,
        },
    }
    if spec.sticky is not None:
        shares["use_hash_policy"] = True
        action["hash_policy"] = [_hash(spec)]
    mirror = traffic.mirror
    if mirror is not None and mirror.revision not in weights_with_traffic(weights):
        to = backends[mirror.revision]
        if to.grpc or not grpc:
            action["request_mirror_policies"] = [
                {
                    "cluster": str(ClusterName(mirror.revision, grpc=grpc, mirror=True)),
                    "runtime_fraction": {
                        "default_value": {
                            "numerator": round(mirror.percent * 10_000),
                            "denominator": "MILLION",
                        }
                    },
                    "disable_shadow_host_suffix_append": True,
                }
            ]
    return action
