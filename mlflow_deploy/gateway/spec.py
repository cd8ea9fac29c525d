"""What a gateway is asked: where it listens, which revisions are behind it, and how they share the traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

from mlflow_deploy.errors import ConfigError

REVISION_HEADER = "x-revision"
"""Request header whose number forces a revision."""

ANSWERED_BY_HEADER = "x-mlflow-deploy-revision"
"""Response header with the number of the revision that answered."""

_NAME_MARKS = "!#$%&'*+-.^_`|~"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sticky:
    """Requests with the same value go to the same revision and replica while the weights do not change.

    When weights move, only as many values change their revision as the weights ask for. Requests without the
    header are spread at random; requests without the cookie get one.

    Attributes:
        by: where the value is.
        name: of the header or cookie.
        cookie_seconds: lifetime of a cookie that the gateway sets; 0 = until the browser is closed.
    """

    by: Literal["header", "cookie"]
    name: str
    cookie_seconds: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("header", "cookie"):
            raise ConfigError(f"Sticky sessions go by header or cookie, not by {self.by!r}")
        if not self.name or not all(
            mark.isascii() and (mark.isalnum() or mark in _NAME_MARKS) for mark in self.name
        ):
            raise ConfigError(
                f"{self.name!r} cannot be the name of a {self.by}", hint="Use letters, digits and '-'"
            )
        _at_least("cookie_seconds", self.cookie_seconds, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewaySpec:
    """How the gateway of one deployment runs.

    Attributes:
        deployment: name of the deployment.
        host: IP address to listen on.
        port: port for HTTP/1.1, HTTP/2 and gRPC alike.
        request_timeout_seconds: how long a request may take; a longer one gets 504; 0 = no limit.
        idle_timeout_seconds: after how long a client's unused connection is closed; 0 = never.
        rate_limit: requests other than GET and HEAD that are let through each second, with bursts as large;
            more get 429; 0 = no limit.
        sticky: how requests stay with a revision.
        access_log: file for one JSON line a request, `-` for standard output, empty for none.
        repeatable: path prefixes whose requests have no effect but their answer, such as `/invocations`,
            `/v2/` and `/inference.GRPCInferenceService/`. They are tried on another replica also when a
            replica breaks the connection before it answers; other POSTs and gRPC calls never are once they
            have reached a replica.
        buffer_bytes: largest request body that can be tried again.
        max_connections: connections of clients at once; more are closed.
        max_requests: requests at once in each revision; more get 503.
        threads: worker threads of Envoy.
        admin_host: address of Envoy's administration when `admin_port` is given; never a public one.
        admin_port: port of the administration; 0 = a Unix socket in the gateway's folder.
        tls_cert: certificate file in PEM form; with `tls_key` clients speak TLS.
        tls_key: private key file of `tls_cert`.
        tls_client_ca: CA file in PEM form; when given, clients need a certificate of this CA.
    """

    deployment: str
    host: str
    port: int
    request_timeout_seconds: float = 60.0
    idle_timeout_seconds: float = 300.0
    rate_limit: int = 0
    sticky: Sticky | None = None
    access_log: str = ""
    repeatable: tuple[str, ...] = ()
    buffer_bytes: int = 10 * 1024 * 1024
    max_connections: int = 10_000
    max_requests: int = 1024
    threads: int = 2
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""

    def __post_init__(self) -> None:
        for name in ("request_timeout_seconds", "idle_timeout_seconds", "rate_limit", "admin_port"):
            _at_least(name, getattr(self, name), 0)
        for name in ("buffer_bytes", "max_connections", "max_requests", "threads"):
            _at_least(name, getattr(self, name), 1)
        _check_port(self.port)
        if self.admin_port:
            _check_port(self.admin_port)
        for prefix in self.repeatable:
            if not prefix.startswith("/"):
                raise ConfigError("A path prefix in `repeatable` begins with '/'", why=f"it is {prefix!r}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("tls_cert and tls_key of the gateway go together", hint="Give both or none")
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigError("tls_client_ca of the gateway needs tls_cert and tls_key")


@dataclasses.dataclass(frozen=True)
class Replica:
    """Address of one running server of a revision.

    Attributes:
        host: IP address or DNS name, as seen from the gateway.
        port: of HTTP.
        grpc_port: of gRPC; 0 when it speaks none.
    """

    host: str
    port: int
    grpc_port: int = 0

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("A replica needs a host")
        _check_port(self.port)
        if self.grpc_port:
            _check_port(self.grpc_port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """A revision and where its replicas are.

    Attributes:
        revision: its number.
        replicas: at least one; all or none of them speak gRPC.
        tls: the replicas speak TLS.
        tls_ca: CA file that their certificates are checked against; empty = encrypted but not checked.
    """

    revision: int
    replicas: tuple[Replica, ...]
    tls: bool = False
    tls_ca: str = ""

    def __post_init__(self) -> None:
        _at_least("The number of a revision", self.revision, 1)
        if not self.replicas:
            raise ConfigError(
                f"Revision {self.revision} has no replica", hint="Start one before it gets traffic"
            )
        if len({bool(replica.grpc_port) for replica in self.replicas}) > 1:
            raise ConfigError(f"Some replicas of revision {self.revision} speak gRPC and some do not")
        if self.tls_ca and not self.tls:
            raise ConfigError(f"tls_ca of revision {self.revision} needs tls")

    @property
    def grpc(self) -> bool:
        """Whether the revision speaks gRPC."""
        return bool(self.replicas[0].grpc_port)


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A revision that gets copies of requests and whose answers are thrown away.

    Attributes:
        revision: who gets the copies.
        percent: of all requests, more than 0 and at most 100.
    """

    revision: int
    percent: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ConfigError(
                "The mirrored share is more than 0 and at most 100 %", why=f"it is {self.percent}"
            )


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How the revisions share the traffic.

    Attributes:
        weights: revision -> share in percent; they add up to 100. A revision without a weight, or with 0,
            is reached through the header `X-Revision` only.
        mirror: who gets copies.
    """

    weights: Mapping[int, int]
    mirror: Mirror | None = None

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.weights.values()) or sum(self.weights.values()) != 100:
            shares = ", ".join(f"{revision}={weight}" for revision, weight in sorted(self.weights.items()))
            raise ConfigError(
                "The weights of the revisions must be 0 or more and add up to 100", why=f"they are {shares}"
            )
        if self.mirror is not None and self.weights.get(self.mirror.revision):
            raise ConfigError(
                f"Revision {self.mirror.revision} cannot get both a share of the traffic and copies of it"
            )


def check(backends: Iterable[Backend], traffic: Traffic) -> None:
    """Refuse traffic for revisions that are not there.

    Raises:
        ConfigError: a revision is given twice, or gets traffic without being a backend.
    """
    known: set[int] = set()
    for backend in backends:
        if backend.revision in known:
            raise ConfigError(f"Revision {backend.revision} is given twice")
        known.add(backend.revision)
    wanted = set(traffic.weights) | ({traffic.mirror.revision} if traffic.mirror else set())
    if missing := sorted(wanted - known):
        there = ", ".join(map(str, sorted(known))) or "none"
        raise ConfigError(
            f"There is no running revision {missing[0]} to send traffic to", why=f"there are: {there}"
        )


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ConfigError(f"{name} must be at least {least}", why=f"it is {value}")


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError("A port is a number from 1 to 65535", why=f"it is {port}")
