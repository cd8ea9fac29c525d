"""MLflow's endpoints on a target: deployments with names inside one address."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_deploy.errors import (
    ConfigError,
    DeploymentNotFound,
    EndpointDeploymentExists,
    EndpointDeploymentNotFound,
    RevisionInUse,
    UnknownSetting,
    Unsupported,
)
from mlflow_deploy.lifecycle import endpoints, release
from tests.unit.lifecycle.conftest import quiet


@pytest.fixture
def shop(place: Any, lines: list[str]) -> Any:
    """Endpoint `shop` with the deployments blue, which has all requests, and green."""
    config = {"model_uri": lines[0], "deployment": "blue", "gateway": "envoy"}
    made = endpoints.create_endpoint(place, "shop", config, progress=quiet)
    assert (made["name"], made["traffic"]) == ("shop", {"blue": 100})
    green = endpoints.create_in(place, "shop", "green", lines[1], progress=quiet)
    assert (green["name"], green["traffic"], green["status"]) == ("green", 0, "stopped")
    return place


@pytest.mark.parametrize(
    "config",
    [
        {"traffic": {"blue": 90, "green": 10}},
        {"traffic": "blue=90, green=10"},
        {"traffic.blue": "90", "traffic.green": "10"},
    ],
)
def test_traffic_is_shared_by_name(shop: Any, config: dict[str, Any]) -> None:
    described = endpoints.update_endpoint(shop, "shop", config, progress=quiet)
    assert described["traffic"] == {"blue": 90, "green": 10}
    assert [(row["name"], row["status"]) for row in described["deployments"]] == [
        ("blue", "ready"),
        ("green", "ready"),
    ]
    assert endpoints.forced_revision(shop, shop.require("shop"), "green") == 2


def test_an_updated_deployment_keeps_its_name_and_share(shop: Any, lines: list[str]) -> None:
    endpoints.update_endpoint(shop, "shop", {"traffic": {"blue": 90, "green": 10}}, progress=quiet)
    green = endpoints.update_in(shop, "shop", "green", lines[2], progress=quiet)
    assert (green["revision"], green["traffic"]) == (3, 10)
    blue = endpoints.update_in(shop, "shop", "blue", lines[1], progress=quiet)
    assert (blue["revision"], blue["traffic"]) == (4, 90)
    assert shop.require("shop").weights == {4: 90, 3: 10}
    endpoints.update_endpoint(shop, "shop", {"traffic": {"green": 100}}, progress=quiet)
    green = endpoints.update_in(shop, "shop", "green", lines[0], progress=quiet)
    assert (green["revision"], green["traffic"]) == (5, 100)


def test_a_deployment_without_requests_can_be_deleted(shop: Any, lines: list[str]) -> None:
    endpoints.update_in(shop, "shop", "green", lines[2], progress=quiet)
    endpoints.delete_in(shop, "shop", "green")
    endpoints.delete_in(shop, "shop", "green")
    assert [row["name"] for row in endpoints.list_in(shop, "shop")] == ["blue"]
    assert [each.number for each in shop.require("shop").revisions] == [1]
    with pytest.raises(RevisionInUse):
        endpoints.delete_in(shop, "shop", "blue")


def test_every_deployment_is_an_endpoint(place: Any, lines: list[str]) -> None:
    release.create(place, "d1", lines[0], config={"gateway": "envoy"}, progress=quiet)
    described = endpoints.describe_endpoint(place, "d1")
    assert described["traffic"] == {"1": 100}
    assert endpoints.describe_in(place, "d1", "1")["endpoint"] == "d1"


def test_mistakes_are_named(shop: Any, lines: list[str]) -> None:
    with pytest.raises(EndpointDeploymentNotFound, match="did you mean 'green'"):
        endpoints.describe_in(shop, "shop", "gren")
    with pytest.raises(EndpointDeploymentExists, match="already has a deployment 'blue'"):
        endpoints.create_in(shop, "shop", "blue", lines[1], progress=quiet)
    with pytest.raises(DeploymentNotFound):
        endpoints.describe_endpoint(shop, "nope")
    with pytest.raises(ConfigError, match="needs a model"):
        endpoints.create_endpoint(shop, "empty", {}, progress=quiet)
    with pytest.raises(UnknownSetting, match="did you mean 'traffic'"):
        endpoints.update_endpoint(shop, "shop", {"trafic": "blue=100"}, progress=quiet)
    with pytest.raises(ConfigError, match="whole percents"):
        endpoints.update_endpoint(shop, "shop", {"traffic": "blue=all"}, progress=quiet)
    with pytest.raises(ConfigError, match="add up to 100"):
        endpoints.update_endpoint(shop, "shop", {"traffic": "blue=90"}, progress=quiet)
    with pytest.raises(ConfigError, match="does not run"):
        endpoints.forced_revision(shop, shop.require("shop"), "green")
    with pytest.raises(ConfigError, match="cannot be changed"):
        endpoints.create_in(shop, "shop", "red", lines[2], config={"port": "9"}, progress=quiet)
    assert endpoints.describe_endpoint(shop, "shop")["traffic"] == {"blue": 100}


def test_without_gateway_only_the_one_with_all_requests_answers(place: Any, lines: list[str]) -> None:
    endpoints.create_in(place, "shop", "blue", lines[0], config={"gateway": "none"}, progress=quiet)
    endpoints.create_in(place, "shop", "green", lines[1], progress=quiet)
    assert endpoints.forced_revision(place, place.require("shop"), "blue") == 0
    with pytest.raises(Unsupported, match="asking deployment 'green'"):
        endpoints.forced_revision(place, place.require("shop"), "green")
