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
from collections.abc import Iterator
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
from tests.e2e.conftest import answers, eventually
from tests.engine import BASE, things

BIN = Path(sys.executable).parent
SPACE = f"monitors-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def server(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that containers reach too, with a registry of its own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    command = [BIN / "mlflow", "server", "--host", "0.0.0.0", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--allowed-hosts", "*"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _up(uri), 60, "the MLflow server is up")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            patch.setenv("MLFLOW_REGISTRY_URI", uri)
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            mlflow.set_experiment("training")
            features, labels = load_iris(return_X_y=True, as_frame=True)
            with mlflow.start_run():
                mlflow.sklearn.log_model(
                    LogisticRegression(max_iter=1000).fit(features, labels),
                    name="model",
                    input_example=features.head(3),
                    registered_model_name="iris",
                    pip_requirements=["scikit-learn"],
                )
            yield uri
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(tracking)
        mlflow.set_experiment("tests")
        os.killpg(process.pid, 9)
        process.wait()
        log.close()


def _up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


@pytest.fixture
def client(engine: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow's client of target docker, with a state folder and a namespace of its own."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path))
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
def test_a_container_judges_and_logs_and_survives_kill_9(client: Any, engine: Any, server: str) -> None:
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
    full = 2 * len([each for each in found if each["rows"]])
    store = mlflow.MlflowClient()
    experiment = store.get_experiment_by_name(experiment_name("docker", "flowers"))
    runs = store.search_runs([experiment.experiment_id], max_results=1000)
    assert len([run for run in runs if WINDOW_TAG in run.data.tags]) == full
    assert "monitor.drift.window" in store.get_model_version("iris", "1").tags
    client.delete_deployment("flowers")
    assert things(engine, SPACE) == []
