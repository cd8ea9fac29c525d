"""A plan says what an update would change, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import ConfigError, DeploymentNotFound, Unsupported
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.plan import UpdatePlan, plan_update
from tests.unit.lifecycle.conftest import quiet


@pytest.fixture
def deployed(place: Any, lines: list[str]) -> Any:
    """Deployment d1 with revision 1, behind a gateway."""
    release.create(place, "d1", lines[0], config={"gateway": "envoy"}, progress=quiet)
    return place


def differences(plan: UpdatePlan) -> dict[str, tuple[Any, Any]]:
    """Key -> old and new value."""
    return {change.key: (change.old, change.new) for change in plan.changes}


def test_the_update_does_what_the_plan_says(deployed: Any, lines: list[str]) -> None:
    config = {"strategy": "canary", "canary_steps": "10,50", "step_seconds": "2", "serving.workers": "2"}
    before = deployed.require("d1")
    plan = plan_update(deployed, "d1", lines[1], config=config, progress=quiet)
    assert deployed.require("d1") == before
    assert (plan.stable, plan.revision, plan.strategy) == (1, 2, "canary")
    assert [step.share for step in plan.steps] == [10, 50, 100]
    found = differences(plan)
    assert found["strategy"] == ("recreate", "canary")
    assert found["serving.workers"] == (1, 2)
    assert found["step_seconds"] == (30.0, 2.0)
    assert found["model_uri"][1].endswith("/2")
    # 10,50 is the default, so it is no change; neither is the form.
    assert found.keys().isdisjoint({"canary_steps", "format", "model_version"})
    assert plan.actions[0] == "start revision 2 beside revision 1"
    assert "give revision 2 10 % of the requests for at least 2 s, then analyse" in plan.actions
    assert plan.actions[-1] == "drain and stop revision 1"
    done = release.update(deployed, "d1", lines[1], config={"serving.workers": "2"}, progress=quiet)
    assert done["bundle"] == found["bundle"][1]
    assert done["revision"] == plan.revision


def test_a_plan_of_nothing_is_empty(deployed: Any, lines: list[str]) -> None:
    for uri in (None, lines[0]):
        plan = plan_update(deployed, "d1", uri, progress=quiet)
        assert (plan.revision, plan.changes, plan.actions) == (0, (), ())
        assert release.update(deployed, "d1", uri, progress=quiet)["revision"] == 1


def test_without_conversion_nothing_is_written(deployed: Any, lines: list[str]) -> None:
    store = sorted(path.name for path in (state_home() / "bundles").iterdir())
    plan = plan_update(deployed, "d1", lines[1], convert=False, progress=quiet)
    assert differences(plan)["bundle"] == (deployed.require("d1").stable.bundle, None)
    assert sorted(path.name for path in (state_home() / "bundles").iterdir()) == store
    assert not plan.converted
    assert any("not converted" in note for note in plan.notes)
    assert plan_update(deployed, "d1", convert=False, progress=quiet).changes == ()


def test_a_plan_is_refused_as_the_update_would_be(place: Any, lines: list[str]) -> None:
    with pytest.raises(DeploymentNotFound):
        plan_update(place, "d1", lines[1], progress=quiet)
    release.create(place, "d1", lines[0], config={"gateway": "none"}, progress=quiet)
    with pytest.raises(Unsupported, match="strategy=canary"):
        plan_update(place, "d1", lines[1], config={"strategy": "canary"}, progress=quiet)
    with pytest.raises(ConfigError, match="cannot be changed"):
        plan_update(place, "d1", config={"port": "9"}, progress=quiet)
    assert any(
        "requests may fail" in line for line in plan_update(place, "d1", lines[1], progress=quiet).actions
    )


def test_a_plan_tells_what_stands_in_the_way(deployed: Any, lines: list[str]) -> None:
    release.update(deployed, "d1", lines[1], progress=quiet)
    release.set_traffic(deployed, "d1", {1: 40, 2: 60}, progress=quiet)
    plan = plan_update(deployed, "d1", lines[2], progress=quiet)
    assert any("The traffic is shared by hand (1=40, 2=60)" in note for note in plan.notes)
