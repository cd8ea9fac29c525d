"""A drift reaches people: by Prometheus and Alertmanager, by the monitor's own webhook, and so does its end."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client

from mlflow_deploy.cli import group
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.monitoring.dashboards import dashboards, expressions
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers, processes_of
from tests.integration.monitoring.programs import ALERTMANAGER, Receiver, program, watched
from tests.waiting import eventually

SECRET = "a secret of this test"
CONFIG = {
    "gateway": "none",
    "monitor.window": "3s",
    "monitor.min_rows": "50",
    # Two requests of all 150 flowers, so that reference and windows hold each kind alike.
    "monitor.reference_rows": "300",
    "monitor.evidently": "never",
    "monitor.alert.webhook_secret": "env:TEST_ALERT_SECRET",
    "monitor.alert.group_seconds": "0",
    "capture.flush_seconds": "0.1",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@contextmanager
def traffic(url: str, rows: Any) -> Iterator[threading.Event]:
    """Requests all the time; while the event is set, with columns that moved."""
    moved, stop = threading.Event(), threading.Event()

    def send() -> None:
        while not stop.wait(0.15):
            answers(url, rows * 3 + 5 if moved.is_set() else rows)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield moved
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_drift_and_its_end_reach_people(
    home: Path,
    tmp_path: Path,
    iris_models: str,
    iris_rows: Any,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program("prometheus")
    monkeypatch.setenv("TEST_ALERT_SECRET", SECRET)
    config = CONFIG | {"monitor.alert.webhook": f"{receiver.url}/own"}
    made = get_deploy_client("local").create_deployment("d1", "models:/iris/1", config=config)
    eventually((home / "local/deployments/d1/data/monitor/exporter.json").exists, 20, "the exporter is up")
    targets = ["monitor", "targets", "-t", "local", "-o", str(tmp_path / "targets")]
    CliRunner().invoke(group, targets, catch_exceptions=False)
    with watched(tmp_path, receiver.url) as query, traffic(made["url"], iris_rows) as moved:
        verdict = 'mlflow_deploy_monitor_verdict{monitor="drift"}'
        eventually(lambda: [each["value"][1] for each in query(verdict)] == ["0"], 60, "a quiet window")
        assert receiver.alerts("MlflowDeployDrift") == []
        moved.set()
        eventually(lambda: bool(receiver.alerts("MlflowDeployDrift")), 40, "Alertmanager's webhook")
        status, labels = receiver.alerts("MlflowDeployDrift")[0]
        assert (status, labels["deployment"], labels["revision"]) == ("firing", "d1", "1")
        eventually(lambda: bool(receiver.own()), 20, "the monitor's own webhook")
        _is_signed(*receiver.own()[0])
        _dashboards_answer(query)
        _a_dead_monitor_resolves_nothing(home, receiver)
        moved.clear()
        eventually(
            lambda: "resolved" in [status for status, _ in receiver.alerts("MlflowDeployDrift")],
            40,
            "Alertmanager tells the end",
        )
        eventually(
            lambda: any(json.loads(body)["status"] == "recovered" for _, body in receiver.own()),
            20,
            "the own webhook tells the end",
        )
    told = [change["reason"] for change in history(LocalTarget(), "d1") if change["action"] == "notify"]
    assert any(reason.startswith("drift firing") for reason in told), told
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept


def _is_signed(headers: dict[str, str], body: bytes) -> None:
    content = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.".encode() + body
    digest = hmac.new(SECRET.encode(), content, hashlib.sha256).digest()
    assert headers["X-MLflow-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert abs(time.time() - int(headers["X-MLflow-Timestamp"])) < 60
    message = json.loads(body)
    assert (message["status"], message["deployment"]) == ("firing", "d1")
    assert message["notices"][0]["columns"], "the columns that moved"


def _dashboards_answer(query: Callable[[str], list[Any]]) -> None:
    """Every query is answered, and those that need no labels and no failures with numbers."""
    empty = {
        title
        for board in dashboards().values()
        for title, expression in expressions(board)
        if not query(expression)
    }
    assert empty <= {
        "Failed and turned away", "Rows with a label", "Largest loss", "Verdict on quality",
        "Quality: measured, estimated, reference", "Loss as a share of the reference",
        "Messages that wait, and actions",
    }, empty  # fmt: skip


def _a_dead_monitor_resolves_nothing(home: Path, receiver: Receiver) -> None:
    """While the job hangs, the monitor counts as down and the drift goes on to fire."""
    (job,) = [each for each in processes_of(home) if "watch" in each.cmdline()]
    before = len(receiver.got)
    job.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: bool(receiver.alerts("MlflowDeployMonitorDown")), 20, "the monitor is down")
        posted = [json.loads(body) for path, _, body in receiver.got[before:] if path == ALERTMANAGER]
        states = [
            each["status"]
            for body in posted
            for each in body["alerts"]
            if each["labels"]["alertname"] == "MlflowDeployDrift"
        ]
        assert "resolved" not in states
    finally:
        job.send_signal(signal.SIGCONT)
