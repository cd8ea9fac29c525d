"""Envoy's public listener: protocols, limits, access log, and errors of its own as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow_deploy.gateway.routes import RATE_LIMIT, ROUTES, answered_by, duration
from mlflow_deploy.gateway.spec import GatewaySpec

LISTENER = "public"
"""Name of the listener and prefix of its statistics."""

_TYPE = "type.googleapis.com/envoy."
_FILTERS = _TYPE + "extensions.filters.http."
_HEADER_SECONDS = 10
_REVISION_OF_CLUSTER = "%CLUSTER_METADATA(mlflow_deploy:revision)%"
_UNAVAILABLE = "TEMPORARILY_UNAVAILABLE"
_BROKEN = (
    "The revision broke the connection before it had answered. It may have computed the request, so it was "
    "not tried again"
)
# Envoy's response flags -> status for the client (0 = Envoy's own), error code, message
_BY_FLAG: tuple[tuple[tuple[str, ...], int, str, str], ...] = (
    (("UT", "DT"), 0, "DEADLINE_EXCEEDED", "The request took longer than the deployment allows"),
    (("UH", "NC"), 503, _UNAVAILABLE, "No replica of the revision is ready. Try again later"),
    (("UO",), 503, _UNAVAILABLE, "The revision has as many requests as it may hold. Try again later"),
    (("UC", "UR", "LR"), 502, _UNAVAILABLE, _BROKEN),
    (("UF",), 503, _UNAVAILABLE, "The revision cannot be reached. Try again later"),
    (("UPE",), 502, "INTERNAL_ERROR", "The revision's answer was not valid HTTP"),
    (("SI",), 0, "DEADLINE_EXCEEDED", "The connection was idle for too long"),
)  # fmt: skip
# Envoy's status -> error code, message. The texts of 404 are written in the routes.
_BY_STATUS: tuple[tuple[int, str, str], ...] = (
    (404, "RESOURCE_DOES_NOT_EXIST", "%LOCAL_REPLY_BODY%"),
    (408, "DEADLINE_EXCEEDED", "The request did not arrive in time"),
    (413, "REQUEST_TOO_LARGE", "The request is too large"),
    (429, "RESOURCE_EXHAUSTED", "The deployment's rate limit is reached. Try again later"),
    (431, "BAD_REQUEST", "The request's headers are too large"),
)


def listener(spec: GatewaySpec) -> dict[str, Any]:
    """The resource of the listener discovery file."""
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": _manager(spec)}
    chain: dict[str, Any] = {"filters": [manager]}
    if spec.tls_cert:
        chain["transport_socket"] = _tls(spec)
    address: dict[str, Any] = {"address": spec.host, "port_value": spec.port}
    if spec.host == "::":
        address["ipv4_compat"] = True
    return {
        "@type": _TYPE + "config.listener.v3.Listener",
        "name": LISTENER,
        "address": {"socket_address": address},
        # Otherwise a second process of the same user could take part of the traffic unnoticed.
        "enable_reuse_port": False,
        "filter_chains": [chain],
    }


def _manager(spec: GatewaySpec) -> dict[str, Any]:
    request_timeout = duration(spec.request_timeout_seconds)
    return {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": LISTENER,
        "codec_type": "AUTO",
        "rds": {
            "route_config_name": ROUTES,
            "config_source": {"path_config_source": {"path": "./rds.json"}},
        },
        "http_filters": list(_filters(spec)),
        # Clients are strangers, also those of this machine: their x-envoy-... headers must not steer retries
        # and timeouts. Internal is only an address that no client can have.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "normalize_path": True,
        "server_name": "mlflow-deploy",
        "server_header_transformation": "APPEND_IF_ABSENT",
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": _TYPE + "extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        "common_http_protocol_options": {"idle_timeout": duration(spec.idle_timeout_seconds)},
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1024 * 1024,
            "initial_connection_window_size": 4 * 1024 * 1024,
        },
        "request_headers_timeout": f"{_HEADER_SECONDS}s",
        "request_timeout": request_timeout,
        "stream_idle_timeout": request_timeout,
        "local_reply_config": _local_replies(),
        "access_log": _access_log(spec.access_log),
    }


def _filters(spec: GatewaySpec) -> Iterator[dict[str, Any]]:
    if spec.rate_limit:
        # Without a token bucket it limits nothing; the routes that are limited bring theirs.
        typed = {"@type": _FILTERS + "local_ratelimit.v3.LocalRateLimit", "stat_prefix": "gateway"}
        yield {"name": RATE_LIMIT, "typed_config": typed}
    # Counts the status of gRPC answers, whose HTTP status is always 200.
    yield {
        "name": "envoy.filters.http.grpc_stats",
        "typed_config": {"@type": _FILTERS + "grpc_stats.v3.FilterConfig", "stats_for_all_methods": False},
    }
    yield {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _FILTERS + "router.v3.Router", "suppress_envoy_headers": True},
    }


def _local_replies() -> dict[str, Any]:
    """Envoy's own errors in the form of the scoring server's, without its internals; gRPC gets the message."""
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"response_flag_filter": {"flags": list(flags)}}, status, code, message)
        for flags, status, code, message in _BY_FLAG
    ]
    cases += [(_status("EQ", status), 0, code, message) for status, code, message in _BY_STATUS]
    cases.append((_status("GE", 500), 0, "INTERNAL_ERROR", "The gateway could not answer"))
    cases.append((_status("GE", 400), 0, "BAD_REQUEST", "The request is not valid HTTP"))
    grpc = {
        "header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}
    }
    mappers = []
    for filter_, status, code, message in cases:
        common: dict[str, Any] = {"headers_to_add": [answered_by(_REVISION_OF_CLUSTER)]}
        if status:
            common["status_code"] = status
        text = {"text_format_source": {"inline_string": message}}
        both = {"and_filter": {"filters": [filter_, grpc]}}
        mappers.append({"filter": both, "body_format_override": text, **common})
        document = {"json_format": {"error_code": code, "message": message}}
        mappers.append({"filter": filter_, "body_format_override": document, **common})
    return {"mappers": mappers}


def _status(operator: str, status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "unused"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}


def _access_log(where: str) -> list[dict[str, Any]]:
    if not where:
        return []
    # Values and not strings where Envoy has numbers. Without the query, which may hold data.
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "revision": _REVISION_OF_CLUSTER,
        "cluster": "%UPSTREAM_CLUSTER%",
        "replica": "%UPSTREAM_HOST%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS_NUMBER%",
        "duration_ms": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "flags": "%RESPONSE_FLAGS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    kind = "stream.v3.StdoutAccessLog" if where == "-" else "file.v3.FileAccessLog"
    typed: dict[str, Any] = {
        "@type": f"{_TYPE}extensions.access_loggers.{kind}",
        "log_format": {"json_format": fields},
    }
    if where != "-":
        typed["path"] = where
    return [{"name": "envoy.access_loggers." + kind.partition(".")[0], "typed_config": typed}]


def _tls(spec: GatewaySpec) -> dict[str, Any]:
    context: dict[str, Any] = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificates": [
            {"certificate_chain": {"filename": spec.tls_cert}, "private_key": {"filename": spec.tls_key}}
        ],
    }
    if spec.tls_client_ca:
        context["validation_context"] = {"trusted_ca": {"filename": spec.tls_client_ca}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": context,
            "require_client_certificate": bool(spec.tls_client_ca),
        },
    }
