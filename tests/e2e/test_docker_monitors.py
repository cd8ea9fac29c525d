"""Monitors on Docker: a container beside the revisions judges what they captured, and goes with them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.deployments import get_deploy_client
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mlflow_deploy.monitoring.landing import WINDOW_TAG, experiment_name
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE, DockerTarget
from tests.e2e.conftest import answers, processes_of
from tests.engine import BASE, things
from tests.integration.monitoring.test_retrain import PROJECT, TRAIN
from tests.waiting import eventually

BIN = Path(sys.executable).parent
SPACE = f"monitors-{uuid.uuid4().hex[:8]}"


class Server:
    """An MLflow server that containers reach too, with a registry of its own; it can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        words = ["--host", "0.0.0.0", "--port", str(self._port), "--workers", "1", "--allowed-hosts", "*"]
        words += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        words += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [BIN / "mlflow", "server", *words],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        eventually(lambda: _up(self.uri), 60, "the MLflow server is up")

    def kill(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()


@pytest.fixture(scope="module")
def server(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two versions of `iris`."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            patch.setenv("MLFLOW_REGISTRY_URI", server.uri)
            mlflow.set_tracking_uri(server.uri)
            mlflow.set_registry_uri(server.uri)
            mlflow.set_experiment("training")
            features, labels = load_iris(return_X_y=True, as_frame=True)
            for strength in (1.0, 0.1):
                with mlflow.start_run():
                    mlflow.sklearn.log_model(
                        LogisticRegression(C=strength, max_iter=1000).fit(features, labels),
                        name="model",
                        input_example=features.head(3),
                        registered_model_name="iris",
                        pip_requirements=["scikit-learn"],
                    )
            yield server
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(tracking)
        mlflow.set_experiment("tests")
        server.kill()


def _up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


@pytest.fixture
def client(
    engine: Any,
    server: Server,
    with_locks: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """MLflow's client of target docker, with a state folder and a namespace of its own."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", with_locks(tmp_path))
    monkeypatch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
    monkeypatch.setenv(NAMESPACE_VARIABLE, SPACE)
    yield get_deploy_client("docker")
    for name in DockerTarget().names():
        DockerTarget().remove(name)


def typed(line: str) -> Any:
    tool, *words = line.split()
    done = subprocess.run([BIN / tool, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_container_judges_and_logs_and_survives_kill_9(
    client: Any, engine: Any, server: Server, tmp_path: Path
) -> None:
    rows = load_iris(as_frame=True).data
    config = {
        "gateway": "none",
        "monitor.window": "5s",
        "monitor.min_rows": "50",
        "capture.flush_seconds": "0.1",
    }
    config |= {"monitor.reference_rows": "600"}
    begun = time.monotonic()
    made = client.create_deployment("flowers", "models:/iris/1", config=config)
    print(f"created in {time.monotonic() - begun:.1f} s, images and all")
    assert made["monitors"]["job"] == "running"
    wanted = {"label": [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=monitor"]}
    (container,) = engine.api.containers(filters=wanted)
    sent = 0

    def judged(windows: int) -> bool:
        nonlocal sent
        for _ in range(5):
            assert answers(made["url"], rows)
            sent += len(rows)
        found = typed("mlflow-deploy monitor list flowers -k drift -n 1000 --json")
        return len([each for each in found if each["rows"]]) >= windows

    eventually(lambda: judged(2), 90, "two windows with rows")
    os.kill(engine.api.inspect_container(container["Id"])["State"]["Pid"], 9)
    eventually(
        lambda: DockerTarget().monitor_state(DockerTarget().require("flowers")) == "running", 30, "back"
    )
    eventually(lambda: judged(4), 90, "windows after the kill")
    time.sleep(8)
    typed("mlflow-deploy monitor run flowers --json")
    for kind in ("drift", "performance"):
        found = typed(f"mlflow-deploy monitor list flowers -k {kind} -n 1000 --all --json")
        assert max(Counter(each["start"] for each in found).values()) == 1
        assert sum(each["rows"] for each in found) == sent
        assert all(each["run_id"] for each in found if each["rows"])
    assert "monitor.drift.window" in mlflow.MlflowClient().get_model_version("iris", "1").tags
    assert _window_runs() == _full_windows()

    _results_wait_for_a_server_that_is_gone(made["url"], rows, server)
    _drift_leads_to_what_the_policy_says(client, rows, tmp_path)
    client.delete_deployment("flowers")
    assert things(engine, SPACE) == []
    eventually(lambda: not processes_of(tmp_path), 20, "nothing runs on this machine")


def _full_windows() -> int:
    found = typed("mlflow-deploy monitor list flowers -n 1000 --all --json")
    return len([each for each in found if each["rows"]])


def _window_runs() -> int:
    store = mlflow.MlflowClient()
    experiment = store.get_experiment_by_name(experiment_name("docker", "flowers"))
    runs = store.search_runs([experiment.experiment_id], max_results=1000)
    return len([run for run in runs if WINDOW_TAG in run.data.tags])


def _results_wait_for_a_server_that_is_gone(url: str, rows: Any, server: Server) -> None:
    """Windows are judged without MLflow, the status tells it, and each is logged once when it is back."""
    before = _full_windows()
    server.kill()

    def told() -> bool:
        assert answers(url, rows)
        notes = [
            note
            for each in typed("mlflow-deploy monitor status flowers --json")["monitors"]
            for note in each["notes"]
        ]
        return any("host.docker.internal" in note and "does not answer" in note for note in notes)

    eventually(told, 60, "the status tells that results wait for MLflow")
    eventually(
        lambda: bool(answers(url, rows)) and _full_windows() > before, 30, "windows are judged without MLflow"
    )
    server.start()
    eventually(
        lambda: _window_runs() == _full_windows(), 90, "all windows are logged, by the container itself"
    )
    found = typed("mlflow-deploy monitor list flowers -n 1000 --json")
    assert all(each["run_id"] for each in found if each["rows"])


def _drift_leads_to_what_the_policy_says(client: Any, rows: Any, folder: Path) -> None:
    """The container may not command the engine; a process of this machine does what it wants, once."""
    reference, project = folder / "reference.parquet", folder / "again"
    rows.to_parquet(reference)
    project.mkdir()
    (project / "MLproject").write_text(PROJECT)
    (project / "train.py").write_text(TRAIN)
    config = {"monitor.reference": str(reference), "monitor.kinds": "drift", "monitor.alert.command": "true"}
    config |= {"monitor.action.drift": "notify,rollback,retrain", "monitor.action.after_windows": "1"}
    config |= {"monitor.alert.group_seconds": "0", "monitor.action.retrain_project": str(project)}
    made = client.update_deployment("flowers", "models:/iris/2", config=config)
    assert made["revision"] == 2
    begun = time.monotonic()

    def rolled_back() -> bool:
        answers(made["url"], rows + 3)
        return bool(DockerTarget().require("flowers").weights == {1: 100})

    eventually(rolled_back, 90, "revision 1 serves again")
    print(f"rolled back {time.monotonic() - begun:.1f} s after the first drifted row")
    expected = {
        # What the rollback itself wrote, and the monitor's note on why it was done.
        ("rollback", "done"): 2,
        ("notify", "done"): 1,
        ("retrain", "started"): 1,
        ("retrain", "done"): 1,
    }
    eventually(lambda: _changes() == expected, 120, "the history tells it, and the training has ended")
    assert "retrained_for" in mlflow.MlflowClient().get_model_version("iris", "3").tags
    assert answers(made["url"], rows)
    assert typed("mlflow-deploy monitor act flowers --json") == []
    assert _changes() == expected


def _changes() -> Counter[tuple[str, str]]:
    found = typed("mlflow-deploy history flowers --json")
    wanted = ("rollback", "notify", "retrain")
    return Counter((each["action"], each["outcome"]) for each in found if each["action"] in wanted)
