"""What a monitor may not do itself is done by a command, once, and in the deployment's history."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import msgspec
import pytest

from mlflow_deploy.config_monitor import ActionSpec, AlertSpec
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.lifecycle.monitor_hand import act_for, watch
from mlflow_deploy.monitoring import job
from mlflow_deploy.monitoring.actions import after_window
from mlflow_deploy.monitoring.alert_state import read_state
from mlflow_deploy.monitoring.landing import land
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.base_monitor import order_of, order_path
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.local_monitor import write_order
from mlflow_deploy.targets.memory import MemoryTarget
from tests.unit.lifecycle.conftest import quiet

ACTION = ActionSpec(drift=("rollback",), after_windows=1)
ALERT = WindowResult(
    deployment="d1",
    revision=2,
    kind="drift",
    start="2026-03-01T10:00:00+00:00",
    end="2026-03-01T11:00:00+00:00",
    rows=1000,
    state="alert",
    summary="x moved",
    finished_at="2026-03-01T11:00:09+00:00",
)


class Elsewhere(MemoryTarget):
    """A target whose monitor job, the real one, has no right over it."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.data = data

    def monitor_state(self, record: DeploymentRecord) -> str:
        return "running"

    def ask_monitor(self, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        command, *options = arguments
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert job.main([command, str(self.data), *options]) == 0
        return printed.getvalue().encode()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Elsewhere:
    """Deployment d1, whose revision 2 is served and whose monitor wants it rolled back."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path / "home"))
    target = Elsewhere(tmp_path / "data")
    release.create(target, "d1", lines[0], config={"gateway": "envoy"}, progress=quiet)
    release.update(target, "d1", lines[1], progress=quiet)
    order = order_of(target.require("d1"), "docker")
    assert order is not None
    write_order(target.data, order, tmp_path / "home" / "bundles")
    after_window(target.data, ALERT, AlertSpec(), ACTION)
    return target


def rollbacks(target: Elsewhere) -> list[dict[str, Any]]:
    return [each for each in history(target, "d1") if each["action"] == "rollback"]


def test_a_rollback_is_carried_out_once_and_noted(target: Elsewhere) -> None:
    (done,) = act_for(target, target.require("d1"))
    assert (done["action"], done["done"], done["detail"]) == (
        "rollback",
        True,
        "rolled back from revision 2 to 1",
    )
    assert target.require("d1").weights == {1: 100}
    assert act_for(target, target.require("d1")) == []
    assert "drift alert of revision 2: x moved" in rollbacks(target)[-1]["reason"]
    assert len(rollbacks(target)) == 2, "the rollback and the note on why"
    assert read_state(target.data).actions[0].state == "done"


def test_what_is_busy_is_tried_again_later(target: Elsewhere) -> None:
    with target.lock("d1"):
        (done,) = act_for(target, target.require("d1"))
    assert not done["done"]
    assert "d1" in done["detail"]
    assert target.require("d1").weights == {2: 100}
    entry = read_state(target.data).actions[0]
    assert (entry.state, entry.attempts, entry.owner) == ("wanted", 1, "")


def test_watching_logs_what_the_job_cannot_reach_mlflow_for(target: Elsewhere, tracking: str) -> None:
    record = target.require("d1")
    assert record.stable.tracking_uri == tracking
    order = read_order(target.data)
    assert order is not None
    alone = tuple(
        msgspec.structs.replace(each, tracking_uri="http://127.0.0.1:9") for each in order.revisions
    )
    order_path(target.data).write_bytes(msgspec.json.encode(msgspec.structs.replace(order, revisions=alone)))
    store = ResultStore(target.data)
    store.commit(ALERT)
    assert "does not answer" in land(target.data).problem
    real = target.ask_monitor

    def asked(record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        answer = real(record, arguments)
        if arguments[0] == "mark":
            target.remove("d1")
        return answer

    target.ask_monitor = asked  # type: ignore[method-assign]
    watch(target, "d1", wait=lambda _seconds: None)
    (result,) = store.results()
    assert mlflow.get_run(result.run_id).data.metrics["drift.rows"] == 1000
    assert not (target.data / "monitor" / "unlogged").exists()


def test_watching_acts_and_ends_when_the_deployment_is_gone(target: Elsewhere) -> None:
    waits: list[float] = []
    real = target.ask_monitor

    def asked(record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        answer = real(record, arguments)
        if arguments[0] == "settle" and read_state(target.data).actions[0].state == "done":
            target.remove("d1")
        return answer

    target.ask_monitor = asked  # type: ignore[method-assign]
    assert watch(target, "d1", wait=waits.append) == 78
    assert sum(waits) >= 3600
    assert read_state(target.data).actions[0].state == "done"
