"""Envoy routes: weights, the mirror, the header that forces a revision, and what may be tried again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_deploy.gateway.names import ClusterName
from mlflow_deploy.gateway.spec import (
    ANSWERED_BY_HEADER,
    REVISION_HEADER,
    Backend,
    GatewaySpec,
    Sticky,
    Traffic,
)

ROUTES = "traffic"
"""Name of the route table."""

FEEDBACK = "/feedback"
"""Where servers take labels."""
RATE_LIMIT = "envoy.filters.http.local_ratelimit"
_TYPE = "type.googleapis.com/envoy."
# Nothing of the request has been read by a server when these happen.
_NOT_SENT = "connect-failure,refused-stream,reset-before-request"
# The connection broke before the answer began; a server may have computed it.
_NOT_ANSWERED = f"{_NOT_SENT},reset"
# Two failures eject a replica, which takes effect only a moment later: the next try may still miss it.
_RETRIES = 3
# A dead replica has the fewest requests and would be chosen again and again.
_OTHER_REPLICA_ATTEMPTS = 50


def routes(spec: GatewaySpec, backends: Sequence[Backend], traffic: Traffic) -> list[dict[str, Any]]:
    """Resources of the route discovery file: one table for all hosts.

    Order matters, the first match wins: a forced revision, a revision that is not there, then the weights.
    """
    by_number = {
        backend.revision: backend for backend in sorted(backends, key=lambda backend: backend.revision)
    }
    table: list[dict[str, Any]] = []
    for number in by_number:
        forced = {"name": REVISION_HEADER, "string_match": {"exact": str(number)}}
        table += _destination(spec, by_number, Traffic({number: 100}), [forced])
    known = ", ".join(map(str, by_number))
    table.append(
        _refusal(
            {"prefix": "/", "headers": [{"name": REVISION_HEADER, "present_match": True}]},
            f"The header X-Revision names a revision that does not run; there are: {known}",
        )
    )
    sticky = spec.sticky
    if sticky is not None and sticky.by == "cookie":
        pattern = rf"(.*; *)?{re.escape(sticky.name)}=[^;]+(;.*)?"
        known_client = {"name": "cookie", "string_match": {"safe_regex": {"regex": pattern}}}
        table += _destination(spec, by_number, traffic, [known_client])
        table += [_with_cookie(route, sticky) for route in _destination(spec, by_number, traffic, [])]
    else:
        table += _destination(spec, by_number, traffic, [])
    return [
        {
            "@type": _TYPE + "config.route.v3.RouteConfiguration",
            "name": ROUTES,
            "virtual_hosts": [{"name": "deployment", "domains": ["*"], "routes": table}],
        }
    ]


def duration(seconds: float) -> str:
    """Seconds in the form that Envoy reads."""
    return f"{seconds:.3f}s"


def answered_by(revision: str) -> dict[str, Any]:
    """The response header that names the revision; replaces one that a server set."""
    return {
        "header": {"key": ANSWERED_BY_HEADER, "value": revision},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def rate_limit(spec: GatewaySpec) -> dict[str, Any]:
    """Configuration of the rate limit filter on the routes that are limited."""
    return {
        "@type": _TYPE + "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "gateway",
        "token_bucket": {
            "max_tokens": spec.rate_limit,
            "tokens_per_fill": spec.rate_limit,
            "fill_interval": "1s",
        },
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
        "response_headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}],
    }


def _destination(
    spec: GatewaySpec, backends: Mapping[int, Backend], traffic: Traffic, headers: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Routes for requests with these headers, by what may be done with them: gRPC, GET, repeatable, others."""
    reading = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    grpc_weights = {number: weight for number, weight in traffic.weights.items() if backends[number].grpc}
    tries = [*((prefix, _NOT_ANSWERED) for prefix in spec.repeatable), ("/", _NOT_SENT)]
    found = []
    for prefix, retry_on in tries if any(grpc_weights.values()) else ():
        match = {"prefix": prefix, "grpc": {}, "headers": headers}
        action = _action(spec, grpc_weights, retry_on, grpc=True)
        found.append(_writing(spec, match, action, _mirror(backends, traffic, grpc=True)))
    if not found:
        match = {"prefix": "/", "grpc": {}, "headers": headers}
        found.append(_refusal(match, "The deployment does not speak gRPC"))
    read = _action(spec, traffic.weights, _NOT_ANSWERED, grpc=False)
    found.append({"match": {"prefix": "/", "headers": [*headers, reading]}, "route": read})
    if traffic.mirror is not None:
        # Every server that a label reaches keeps it, so a shadow gets no copies.
        feedback = _action(spec, traffic.weights, _NOT_SENT, grpc=False)
        found.append(_writing(spec, {"prefix": FEEDBACK, "headers": headers}, feedback, []))
    for prefix, retry_on in tries:
        match = {"prefix": prefix, "headers": headers}
        action = _action(spec, traffic.weights, retry_on, grpc=False)
        found.append(_writing(spec, match, action, _mirror(backends, traffic, grpc=False)))
    return found


def _writing(
    spec: GatewaySpec, match: dict[str, Any], action: dict[str, Any], copies: list[dict[str, Any]]
) -> dict[str, Any]:
    """A route for requests with a body: they are limited, mirrored, and kept for another try."""
    route: dict[str, Any] = {
        "match": match,
        "route": action | ({"request_mirror_policies": copies} if copies else {}),
        "request_body_buffer_limit": spec.buffer_bytes,
    }
    if spec.rate_limit:
        route["typed_per_filter_config"] = {RATE_LIMIT: rate_limit(spec)}
    return route


def _refusal(match: dict[str, Any], message: str) -> dict[str, Any]:
    return {"match": match, "direct_response": {"status": 404, "body": {"inline_string": message}}}


def _action(spec: GatewaySpec, weights: Mapping[int, int], retry_on: str, *, grpc: bool) -> dict[str, Any]:
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
        "timeout": duration(spec.request_timeout_seconds),
        "retry_policy": _retry_policy(retry_on),
    }
    if spec.sticky is not None:
        shares["use_hash_policy"] = True
        action["hash_policy"] = _hashes(spec.sticky)
    return action


def _retry_policy(retry_on: str) -> dict[str, Any]:
    kind = _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": retry_on,
        "num_retries": _RETRIES,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        "retry_host_predicate": [
            {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind}}
        ],
        "host_selection_retry_max_attempts": _OTHER_REPLICA_ATTEMPTS,
    }


def _mirror(backends: Mapping[int, Backend], traffic: Traffic, *, grpc: bool) -> list[dict[str, Any]]:
    mirror = traffic.mirror
    if mirror is None or (grpc and not backends[mirror.revision].grpc):
        return []
    share = {"numerator": round(mirror.percent * 10_000), "denominator": "MILLION"}
    return [
        {
            "cluster": str(ClusterName(mirror.revision, grpc=grpc, mirror=True)),
            "runtime_fraction": {"default_value": share},
            "disable_shadow_host_suffix_append": True,
        }
    ]


def _hashes(sticky: Sticky) -> list[dict[str, Any]]:
    """What is hashed to choose the revision and then the replica."""
    if sticky.by == "header":
        return [{"header": {"header_name": sticky.name}}]
    # A client without the cookie gets the id of its first request as its value. So the first request is
    # already sent where the later ones go; Envoy's own cookies are made after the revision was chosen.
    return [{"cookie": {"name": sticky.name}, "terminal": True}, {"header": {"header_name": "x-request-id"}}]


def _with_cookie(route: dict[str, Any], sticky: Sticky) -> dict[str, Any]:
    """The route with the sticky cookie added to its answers."""
    age = f"; Max-Age={sticky.cookie_seconds}" if sticky.cookie_seconds else ""
    value = f"{sticky.name}=%REQ(X-REQUEST-ID)%{age}; Path=/; HttpOnly; SameSite=Lax"
    cookie = {"header": {"key": "set-cookie", "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
    return {**route, "response_headers_to_add": [cookie]}
