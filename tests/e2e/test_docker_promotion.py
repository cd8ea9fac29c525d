"""The controller on target docker: an alias rolls a version out in containers, as a canary."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mlflow_deploy.images.catalog import prune_images
from mlflow_deploy.lifecycle.controller.loop import follow
from mlflow_deploy.lifecycle.controller.reconcile import Event
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE
from tests.e2e.load import failed, load, quiet
from tests.engine import BASE

pytestmark = pytest.mark.slow

MODEL = "shipped"
POLICY = """
models:
  shipped:
    stages:
      - name: Production
        target: docker
        deployment: "{model}"
        strategy: canary
        config: {gateway: envoy, format: onnx, canary_steps: "50", step_seconds: 1, monitor: none,
          analysis.max_answer_shift: "0", analysis.max_latency_ratio: "10"}
        gates: [security, signature]
"""


@pytest.fixture
def shipped(
    engine: Any,
    tracking: str,
    with_locks: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Two versions in the registry, and the docker target with a namespace of its own."""
    (tmp_path / "lifecycle.yaml").write_text(POLICY)
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", with_locks(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_DEPLOY_POLICY", str(tmp_path / "lifecycle.yaml"))
    monkeypatch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
    monkeypatch.setenv(NAMESPACE_VARIABLE, f"shipped-{uuid.uuid4().hex[:8]}")
    rows = pd.DataFrame({"x": np.arange(8.0)})
    for factor in (1, 2):
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                LinearRegression().fit(rows, rows["x"] * factor), name="model", input_example=rows,
                registered_model_name=MODEL, pip_requirements=["scikit-learn"],
            )  # fmt: skip
    target = open_target("docker")
    try:
        yield target
    finally:
        for name in target.names():
            target.remove(name)
        prune_images(keep=0, dry_run=False, model=MODEL, progress=quiet)


def _look() -> list[tuple[str, str, str]]:
    events: list[Event] = []
    follow(
        policy=None, models=(), every=False, interval=1, once=True, stop=threading.Event(),
        tell=events.append, progress=quiet,
    )  # fmt: skip
    return [(each.action, each.version, each.reason) for each in events]


def test_an_alias_deploys_in_containers(shipped: Any) -> None:
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(MODEL, "champion", "1")
    assert _look() == [("promoted", "1", "")]
    url = shipped.url(shipped.require(MODEL))
    client.set_registered_model_alias(MODEL, "champion", "2")
    answers: list[Any] = []
    row = {"dataframe_split": {"columns": ["x"], "data": [[10.0]]}}
    with load(url, row, rate=40, clients=2, answers=answers) as seen:
        assert _look() == [("promoted", "2", "")]
    assert not failed(seen)
    assert {round(float(np.ravel(each)[0]), 3) for each in answers} == {10.0, 20.0}
    record = shipped.require(MODEL)
    assert (record.stable.model_version, record.last_rollout.strategy) == ("2", "canary")
    assert "on target docker" in client.get_model_version(MODEL, "2").description
