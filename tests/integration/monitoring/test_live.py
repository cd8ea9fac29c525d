"""A real Prometheus and Alertmanager with the generated files: a verdict fires, outlives its exporter, ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.monitoring.dashboards import dashboards, expressions
from mlflow_deploy.monitoring.exporter import Exporter
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from tests.integration.monitoring.programs import Receiver, program, watched
from tests.waiting import eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def judge(store: ResultStore, state: str) -> None:
    """Write a window of a second that ended just now."""
    end = datetime.now(UTC)
    result = WindowResult(
        deployment="flights",
        revision=1,
        kind="drift",
        start=(end - timedelta(seconds=1)).isoformat(),
        end=end.isoformat(),
        rows=1000,
        state=state,  # type: ignore[arg-type]
        summary="",
        columns={"temp": {"statistic": 0.5, "drifted": float(state == "alert"), "missing_share": 0.0}},
        finished_at=end.isoformat(),
    )
    assert store.commit(result)


@pytest.mark.slow
def test_a_verdict_fires_outlives_its_exporter_and_ends(tmp_path: Path, receiver: Receiver) -> None:
    program("prometheus")
    data = tmp_path / "data"
    store = ResultStore(data)
    exporter = Exporter(data, "flights")
    exporter.heartbeat = time.time()
    targets = tmp_path / "targets"
    targets.mkdir()
    address = {"targets": [f"127.0.0.1:{exporter.port}"], "labels": {"deployment": "flights"}}
    (targets / "monitors.json").write_text(json.dumps([address]))
    (targets / "servers.json").write_text("[]")
    judge(store, "ok")
    try:
        with watched(tmp_path, receiver.url) as query:
            verdict = 'mlflow_deploy_monitor_verdict{monitor="drift"}'
            eventually(lambda: [each["value"][1] for each in query(verdict)] == ["0"], 20, "a quiet window")
            # No server is known, which is told; of a drift nothing is.
            eventually(lambda: bool(receiver.alerts("MlflowDeployServersAbsent")), 20, "no servers")
            assert receiver.alerts("MlflowDeployDrift") == []
            judge(store, "alert")
            eventually(lambda: bool(receiver.alerts("MlflowDeployDrift")), 20, "the webhook")
            status, labels = receiver.alerts("MlflowDeployDrift")[0]
            assert (status, labels["deployment"], labels["revision"], labels["severity"]) == (
                "firing", "flights", "1", "critical",
            )  # fmt: skip
            _drift_board_answers(query)

            exporter.close()
            eventually(lambda: bool(receiver.alerts("MlflowDeployMonitorDown")), 20, "the exporter is dead")
            gone = 'ALERTS{alertname="MlflowDeployMonitorGone",alertstate="firing"}'
            eventually(lambda: bool(query(gone)), 20, "its metrics are gone")
            # That is the same trouble told twice, which Alertmanager keeps back.
            assert receiver.alerts("MlflowDeployMonitorGone") == []
            states = {status for status, _ in receiver.alerts("MlflowDeployDrift")}
            assert states == {"firing"}

            judge(store, "ok")
            exporter = Exporter(data, "flights", port=exporter.port)
            exporter.heartbeat = time.time()
            eventually(
                lambda: "resolved" in [status for status, _ in receiver.alerts("MlflowDeployDrift")],
                20,
                "the end is told",
            )
    finally:
        exporter.close()


def _drift_board_answers(query: Callable[[str], list[Any]]) -> None:
    empty = [
        title
        for title, expression in expressions(dashboards()["mlflow-deploy-drift.json"])
        if not query(expression)
    ]
    assert empty == []
