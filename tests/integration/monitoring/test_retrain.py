"""The action `retrain` runs a real MLflow Project beside the monitor and registers what it logged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.monitoring.action_requests import ActionRequest, act_by_program
from mlflow_deploy.targets.local import LocalTarget

PROJECT = """
name: again
entry_points:
  main:
    parameters:
      slope: {type: float, default: 1}
    command: "python train.py {slope}"
"""
TRAIN = """
import sys
import mlflow, numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression

rows = pd.DataFrame({"x": np.arange(8.0)})
with mlflow.start_run():
    model = LinearRegression().fit(rows, rows["x"] * float(sys.argv[1]))
    mlflow.sklearn.log_model(model, name="model", input_example=rows, pip_requirements=["scikit-learn"])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "MLproject").write_text(PROJECT)
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.mark.slow
def test_a_project_becomes_a_version(target: LocalTarget, tracking: str, project: Path) -> None:
    rows = pd.DataFrame({"x": np.arange(8.0)})
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            LinearRegression().fit(rows, rows["x"]),
            name="model",
            input_example=rows,
            registered_model_name="line",
            pip_requirements=["scikit-learn"],
        )
    config = {"gateway": "none", "monitor": "none"}
    release.create(target, "d1", "models:/line/1", config=config, progress=lambda _line: None)

    def ask(**settings: Any) -> str:
        return act_by_program("local")(
            ActionRequest(
                id=str(settings),
                phase="do",
                deployment="d1",
                action="retrain",
                revision=1,
                reason="drift alert of revision 1: x moved",
                settings={"retrain_project": str(project), **settings},
            ),
        )

    def ended(count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            found = [change for change in history(target, "d1") if change["action"] == "retrain"]
            if len(found) == count:
                return found
            time.sleep(0.2)
        pytest.fail("the training did not end")

    assert "runs; its log is" in ask(retrain_parameters={"slope": "3"})
    (change,) = ended(1)
    assert (change["outcome"], change["reason"]) == (
        "done",
        "version 2 of the model is registered; drift alert of revision 1: x moved",
    )
    version = mlflow.MlflowClient().get_model_version("line", "2")
    assert version.tags["retrained_for"] == "d1 revision 1"
    assert mlflow.pyfunc.load_model("models:/line/2").predict(pd.DataFrame({"x": [2.0]}))[0] == pytest.approx(
        6
    )
    assert history(target, "d1")[0]["action"] == "create"

    ask(retrain_project="/not/there")
    assert ended(2)[-1]["outcome"] == "failed"
    assert "/not/there" in ended(2)[-1]["reason"] or "git" in ended(2)[-1]["reason"].lower()
    assert len(mlflow.MlflowClient().search_model_versions("name='line'")) == 2
