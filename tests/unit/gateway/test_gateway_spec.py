"""What can be asked of a gateway, and what is refused with a clear line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.gateway.names import ClusterName, parse_cluster_name
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Mirror, Replica, Sticky, Traffic, check

REPLICA = Replica("127.0.0.1", 9001)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"port": 0}, "port"),
        ({"port": 70_000}, "port"),
        ({"request_timeout_seconds": -1}, "request_timeout_seconds must be at least 0"),
        ({"request_timeout_seconds": float("nan")}, "request_timeout_seconds"),
        ({"rate_limit": -5}, "rate_limit"),
        ({"threads": 0}, "threads"),
        ({"max_connections": 0}, "max_connections"),
        ({"repeatable": ("invocations",)}, "begins with '/'"),
        ({"tls_cert": "a.pem"}, "go together"),
        ({"tls_client_ca": "a.pem"}, "needs tls_cert"),
    ],
)
def test_refused_settings(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GatewaySpec(**{"deployment": "toy", "host": "127.0.0.1", "port": 8080, **changed})


@pytest.mark.parametrize(
    ("weights", "mirror", "message"),
    [
        ({}, None, "add up to 100"),
        ({1: 99}, None, "1=99"),
        ({1: 110, 2: -10}, None, "0 or more"),
        ({1: 60, 2: 40}, Mirror(2), "both a share"),
    ],
)
def test_refused_traffic(weights: dict[int, int], mirror: Mirror | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Traffic(weights, mirror)


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_refused_mirror(percent: float) -> None:
    with pytest.raises(ConfigError, match="mirrored share"):
        Mirror(2, percent)


def test_refused_backends() -> None:
    with pytest.raises(ConfigError, match="no replica"):
        Backend(revision=1, replicas=())
    with pytest.raises(ConfigError, match="at least 1"):
        Backend(revision=0, replicas=(REPLICA,))
    with pytest.raises(ConfigError, match="Some replicas"):
        Backend(revision=1, replicas=(REPLICA, Replica("127.0.0.1", 9002, 9003)))
    with pytest.raises(ConfigError, match="needs tls"):
        Backend(revision=1, replicas=(REPLICA,), tls_ca="ca.pem")
    with pytest.raises(ConfigError, match="port"):
        Replica("127.0.0.1", -1)
    with pytest.raises(ConfigError, match="host"):
        Replica("", 1)
    with pytest.raises(ConfigError, match="header or cookie"):
        Sticky(by="address", name="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be the name"):
        Sticky(by="cookie", name="a b")


def test_traffic_needs_its_revisions() -> None:
    one, two = Backend(revision=1, replicas=(REPLICA,)), Backend(revision=2, replicas=(REPLICA,))
    check([one, two], Traffic({1: 100}, Mirror(2)))
    with pytest.raises(ConfigError, match="no running revision 2"):
        check([one], Traffic({1: 100}, Mirror(2)))
    with pytest.raises(ConfigError, match="there are: none"):
        check([], Traffic({1: 100}))
    with pytest.raises(ConfigError, match="given twice"):
        check([one, one], Traffic({1: 100}))


def test_spec_survives_its_file() -> None:
    spec = GatewaySpec(
        deployment="toy",
        host="::1",
        port=8080,
        sticky=Sticky(by="cookie", name="route"),
        repeatable=("/invocations",),
    )
    assert msgspec.json.decode(msgspec.json.encode(spec), type=GatewaySpec) == spec


@pytest.mark.parametrize("grpc", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_cluster_names(grpc: bool, mirror: bool) -> None:
    name = ClusterName(12, grpc=grpc, mirror=mirror)
    assert parse_cluster_name(str(name)) == name
    assert str(ClusterName(12)) == "r12"
    assert parse_cluster_name("xds") is None
    assert parse_cluster_name("r12-other") is None
