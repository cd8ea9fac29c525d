"""The documents for Envoy: pure, deterministic, and taken by the real Envoy's own check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy.gateway import binary, documents
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Mirror, Replica, Sticky, Traffic

SPEC = GatewaySpec(deployment="toy", host="127.0.0.1", port=8080)
ONE = Backend(revision=1, replicas=(Replica("127.0.0.1", 9001), Replica("127.0.0.1", 9002)))
TWO = Backend(revision=2, replicas=(Replica("127.0.0.1", 9003),))


def table(spec: GatewaySpec, backends: list[Backend], traffic: Traffic) -> list[dict[str, Any]]:
    """The routes in their order."""
    document = documents.route_document(spec, backends, traffic)
    return list(document["resources"][0]["virtual_hosts"][0]["routes"])


def names(document: dict[str, Any]) -> list[str]:
    """The clusters of a document."""
    return [cluster["name"] for cluster in document["resources"]]


@pytest.mark.parametrize(
    ("spec", "backends", "traffic"),
    [
        (SPEC, [ONE, TWO], Traffic({1: 90, 2: 10})),
        (
            GatewaySpec(
                deployment="toy",
                host="::",
                port=1,
                request_timeout_seconds=0,
                idle_timeout_seconds=0,
                rate_limit=3,
                sticky=Sticky(by="cookie", name="a.b-c_d", cookie_seconds=9),
                access_log="./access.log",
                repeatable=("/invocations", "/v2/"),
            ),
            [
                Backend(revision=1, replicas=(Replica("flights-r1", 80, 81),), tls=True),
                Backend(revision=2, replicas=(Replica("::1", 80, 81),)),
                Backend(revision=3, replicas=(Replica("10.0.0.3", 80),)),
            ],
            Traffic({1: 50, 3: 50}, Mirror(2, 0.01)),
        ),
    ],
)
def test_envoy_takes_them(
    tmp_path: Path, spec: GatewaySpec, backends: list[Backend], traffic: Traffic
) -> None:
    document = documents.static_bootstrap(
        documents.cluster_document(spec, backends, traffic),
        documents.listener_document(spec),
        documents.route_document(spec, backends, traffic),
    )
    assert binary.why_invalid(document, tmp_path) == ""
    document["static_resources"]["clusters"][0]["connect_timeout"] = "-1s"
    assert "Expected positive duration" in binary.why_invalid(document, tmp_path)


def test_same_question_same_bytes() -> None:
    traffic = Traffic({1: 90, 2: 10}, None)
    for make in (documents.cluster_document, documents.route_document):
        one = documents.encode(make(SPEC, [ONE, TWO], traffic))
        assert documents.encode(make(SPEC, [TWO, ONE], Traffic({2: 10, 1: 90}))) == one
    other = documents.route_document(SPEC, [ONE, TWO], Traffic({1: 89, 2: 11}))
    assert other["version_info"] != documents.route_document(SPEC, [ONE, TWO], traffic)["version_info"]
    same = documents.cluster_document(SPEC, [ONE, TWO], Traffic({1: 0, 2: 100}))
    assert same == documents.cluster_document(SPEC, [ONE, TWO], traffic)


@given(st.integers(0, 100))
def test_weights_are_those_asked_for(share: int) -> None:
    route = table(SPEC, [ONE, TWO], Traffic({1: 100 - share, 2: share}))[-1]
    clusters = route["route"]["weighted_clusters"]["clusters"]
    assert {cluster["name"]: cluster["weight"] for cluster in clusters} == {"r1": 100 - share, "r2": share}


def test_only_safe_requests_are_tried_again() -> None:
    spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=8080, repeatable=("/invocations",))
    for route in table(spec, [ONE, TWO], Traffic({1: 100})):
        if "route" not in route:
            continue
        retries = route["route"]["retry_policy"]["retry_on"].split(",")
        reads = any(header["name"] == ":method" for header in route["match"]["headers"])
        repeatable = route["match"]["prefix"] == "/invocations"
        assert ("reset" in retries) == (reads or repeatable)
        assert "5xx" not in retries
        assert "gateway-error" not in retries


def test_order_of_the_routes() -> None:
    routes = table(SPEC, [ONE, TWO], Traffic({1: 100}))
    forced = [
        header.get("string_match", {}).get("exact", "any")
        for route in routes
        for header in route["match"]["headers"]
        if header["name"] == "x-revision"
    ]
    assert forced == ["1"] * 3 + ["2"] * 3 + ["any"]
    assert len(routes) == len(forced) + 3


def test_clusters_of_the_mirror_and_of_grpc() -> None:
    two = Backend(revision=2, replicas=(Replica("127.0.0.1", 9003, 9004),))
    document = documents.cluster_document(SPEC, [ONE, two], Traffic({1: 100}, Mirror(2)))
    assert names(document) == ["r1", "r2", "r2-grpc", "r2-mirror", "r2-grpc-mirror"]
    endpoint = document["resources"][2]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"]["port_value"] == 9004
    assert endpoint["health_check_config"]["port_value"] == 9003


def test_old_clusters_stay_until_their_routes_are_gone() -> None:
    traffic = Traffic({2: 100})
    old = documents.cluster_document(SPEC, [ONE], Traffic({1: 100}))
    new = documents.cluster_document(SPEC, [TWO], traffic)
    both = documents.with_clusters_of(new, old)
    assert names(both) == ["r2", "r1"]
    assert both["version_info"] not in (old["version_info"], new["version_info"])
    assert documents.with_clusters_of(new, new) == new


def test_nothing_leads_to_the_administration() -> None:
    bootstrap = documents.bootstrap(SPEC)
    assert bootstrap["admin"]["address"] == {"pipe": {"path": "./admin.sock", "mode": 0o600}}
    everything = json.dumps([documents.listener_document(SPEC), table(SPEC, [ONE], Traffic({1: 100}))])
    assert "admin" not in everything


def test_labels_are_not_copied_to_a_shadow() -> None:
    routes = table(SPEC, [ONE, TWO], Traffic({1: 100}, Mirror(2)))
    mine = [route for route in routes if route["match"].get("prefix") == "/feedback"]
    assert mine
    assert not any("request_mirror_policies" in route["route"] for route in mine)
    plain = [route for route in routes if route["match"].get("prefix") == "/" and "route" in route]
    assert any("request_mirror_policies" in route["route"] for route in plain)
    assert routes.index(mine[-1]) < routes.index(plain[-1])
