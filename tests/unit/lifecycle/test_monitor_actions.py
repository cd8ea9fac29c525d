"""What a monitor's alert does to a deployment, that it does it once, and that the history tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.errors import DeploymentBusy, MonitorActionFailed
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.lifecycle.monitor_actions import carry_out
from mlflow_deploy.monitoring.action_requests import ActionRequest
from tests.unit.lifecycle.conftest import quiet


def request(action: str, revision: int, phase: str = "do", **more: Any) -> ActionRequest:
    return ActionRequest(
        id="1",
        phase=phase,  # type: ignore[arg-type]
        deployment="d1",
        action=action,  # type: ignore[arg-type]
        revision=revision,
        reason="drift alert of revision 2: 9 of 16 columns drifted",
        settings=more.pop("settings", {}),
        **more,
    )


@pytest.fixture
def deployed(place: Any, lines: list[str]) -> Any:
    """Deployment d1 whose revision 2 replaced revision 1."""
    release.create(place, "d1", lines[0], config={"gateway": "envoy"}, progress=quiet)
    release.update(place, "d1", lines[1], progress=quiet)
    return place


def test_rollback_leaves_the_revision_once_and_no_other(deployed: Any) -> None:
    assert carry_out(deployed, request("rollback", 2)) == "rolled back from revision 2 to 1"
    # The same again, as after a kill: revision 1 serves, and stays.
    assert carry_out(deployed, request("rollback", 2)) == "nothing: revision 1 serves, not 2"
    assert deployed.require("d1").weights == {1: 100}


def test_what_was_done_is_in_the_history_and_hides_no_update(deployed: Any) -> None:
    carry_out(deployed, request("rollback", 2, "note", detail="rolled back from revision 2 to 1"))
    carry_out(deployed, request("notify", 2, "note"))
    carry_out(deployed, request("retrain", 2, "note", detail="no project", failed=True))
    told = [(each["action"], each["outcome"], each["revision"]) for each in history(deployed, "d1")[-3:]]
    assert told == [("rollback", "done", 2), ("notify", "done", 2), ("retrain", "failed", 2)]
    assert history(deployed, "d1")[-3]["reason"].startswith("rolled back from revision 2 to 1; drift alert")
    assert release.describe(deployed, deployed.require("d1"))["last_update"] == "done"


def test_the_note_waits_while_another_command_works_on_the_deployment(deployed: Any) -> None:
    with deployed.lock("d1"), pytest.raises(DeploymentBusy):
        carry_out(deployed, request("notify", 2, "note"))


def test_pause_rollout_without_a_rollout_is_nothing(deployed: Any) -> None:
    assert carry_out(deployed, request("pause-rollout", 2)) == "nothing: no rollout goes on"


def test_retrain_refuses_a_model_that_is_not_registered(deployed: Any) -> None:
    settings = {"drift": ["retrain"], "retrain_project": "projects/flight_delay"}
    with pytest.raises(MonitorActionFailed, match="does not serve a registered model"):
        carry_out(deployed, request("retrain", 2, settings=settings))


def test_a_monitor_acts_through_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_deploy.monitoring.action_requests import act_by_program

    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path))
    with pytest.raises(MonitorActionFailed, match="no deployment 'd1'"):
        act_by_program("local")(request("rollback", 2))
