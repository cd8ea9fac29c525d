"""`mlflow run` really runs the projects, in fresh processes and a fresh tracking store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.entities import Run

from mlflow_deploy.monitoring.store import ResultStore
from tests.conftest import ROOT, load_project
from tests.e2e.conftest import processes_of

pytestmark = pytest.mark.slow


class Laptop:
    """A folder with a tracking store of its own, in which `mlflow` commands run as a user would type them."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
        # Other tests set an experiment, which MLflow hands on in the environment.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self._environment = inherited | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_REGISTRY_URI": self.uri,
            "MLFLOW_DEPLOY_HOME": str(home),
            # `python` in the MLproject files has to be this one.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def mlflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mlflow ARGUMENTS` and return what it printed."""
        return subprocess.run(
            ["mlflow", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def run(self, project: Path, *arguments: str) -> str:
        """`mlflow run PROJECT ARGUMENTS` with the installed packages, which has to end well."""
        done = self.mlflow("run", str(project), "--env-manager", "local", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        return list(mlflow.MlflowClient(self.uri).search_runs(["0"]))


@pytest.fixture
def laptop(tmp_path: Path, home: Path) -> Laptop:
    """A fresh laptop; whatever it deploys is stopped at the end."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    return Laptop(folder, home)


def test_the_project_trains_and_registers(laptop: Laptop) -> None:
    output = laptop.run(ROOT / "projects" / "flight_delay", "-P", "max_iter=20")
    assert "model_version=1" in output
    (run,) = laptop.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["max_iter"] == run.data.params["classifier__max_iter"] == "20"
    assert run.data.metrics["roc_auc"] > 0.6


def test_train_and_monitor_are_entry_points_of_the_repository(laptop: Laptop) -> None:
    laptop.run(ROOT, "-e", "train", "-P", "max_iter=20", "-P", "registered_model_name=delays")
    output = laptop.run(ROOT, "-e", "monitor", "-P", "model_uri=models:/delays/1", "-P", "months=7")
    assert "columns drifted" in output.splitlines()[-1]
    assert laptop.runs()[0].data.tags["drift"] == "alert"


def test_the_keras_project_runs(laptop: Laptop) -> None:
    output = laptop.run(ROOT / "projects" / "wine_keras", "-P", "epochs=20")
    assert all(f"{form}: models:/" in output for form in ("savedmodel", "onnx", "tflite"))
    assert {run.info.status for run in laptop.runs()} == {"FINISHED"}


def test_main_walks_the_whole_path_and_cleans_up(laptop: Laptop) -> None:
    output = laptop.run(ROOT, "-e", "main", "-P", "max_iter=20", "-P", "traffic_rows=200")
    assert "Answered 200 flights" in output
    assert "Deleted flight-delay" in output
    runs = laptop.runs()
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs if run is not parent} == {
        parent.info.run_id
    }
    assert len(runs) == 3
    assert parent.data.tags["drift"] == "alert"
    assert 0.5 < parent.data.metrics["sent_accuracy"] < 1.0
    assert laptop.mlflow("deployments", "get", "-t", "local", "--name", "flight-delay").returncode != 0


def test_main_keeps_the_deployment_when_told(laptop: Laptop, home: Path) -> None:
    keep = ("-P", "keep=true", "-P", "max_iter=20", "-P", "traffic_rows=100")
    laptop.run(ROOT, "-e", "main", "-P", "name=kept", *keep)
    assert laptop.mlflow("deployments", "get", "-t", "local", "--name", "kept").returncode == 0
    output = laptop.run(ROOT, "-e", "deploy", "-P", "name=kept", "-P", "model_uri=models:/flight-delay/1")
    assert "name=kept" in output
    # The version that is served already makes no new revision.
    assert "revision=1" in output
    _the_monitor_entry_point_judges_what_a_deployment_captured(laptop, home)


def _the_monitor_entry_point_judges_what_a_deployment_captured(laptop: Laptop, home: Path) -> None:
    config = ("monitor.window=50rows", "monitor.min_rows=20", "monitor.grace_seconds=0", "strategy=recreate")
    words = [word for each in (*config, "capture.flush_seconds=0.1") for word in ("-C", each)]
    done = laptop.mlflow("deployments", "update", "-t", "local", "--name", "kept", *words)
    assert done.returncode == 0, done.stderr
    store = ResultStore(home / "local" / "deployments" / "kept" / "data")
    jobs = [each for each in processes_of(home) if "watch" in each.cmdline()]
    assert jobs, "the attached job, which would judge the windows first"
    try:
        for job in jobs:
            job.suspend()
        data = load_project("flight_delay", "data")["data"]
        flights = data.load_flights([3])[list(data.FEATURES)].head(100)
        get_deploy_client("local").predict("kept", flights)
        time.sleep(1)
        assert store.results(2) == []
        output = laptop.run(ROOT, "-e", "monitor", "-P", "deployment=kept")
    finally:
        for job in jobs:
            job.resume()
    assert "drift" in output
    assert "performance" in output
    found = store.results(2, "drift")
    # One request is not taken apart.
    assert sum(each.rows for each in found) == 100
    runs = mlflow.MlflowClient(laptop.uri)
    assert all(runs.get_run(each.run_id).info.status == "FINISHED" for each in found)


def test_a_failed_deployment_ends_with_one_error_line(laptop: Laptop) -> None:
    done = laptop.mlflow(
        "run", str(ROOT), "--env-manager", "local", "-e", "deploy", "-P", "model_uri=models:/none/1"
    )
    assert done.returncode != 0
    assert "Error: There is no model" in done.stderr
    assert "Traceback" not in done.stderr
