"""Rollouts in steps on real processes under load: good candidates arrive, bad ones go without harm."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature

from mlflow_deploy.errors import RolloutFailed
from mlflow_deploy.lifecycle import release
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import eventually
from tests.e2e.test_gateway import failed, load, quiet

CODE = """
import time
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        {behaviour}
        return model_input["x"] * 2

mlflow.models.set_model(Model())
"""
# The input example is answered, so every version becomes ready; only real rows (x = 1) meet the fault.
BEHAVIOURS = {
    1: "pass",
    2: "pass  # as good as version 1",
    3: "if (model_input['x'] == 1).any(): raise ValueError('this candidate is broken')",
    4: "time.sleep(0.25 if (model_input['x'] == 1).any() else 0)",
}
ROWS = pd.DataFrame({"x": [1.0]})
CANARY = {"strategy": "canary", "canary_steps": "10,50", "step_seconds": "1"}


@pytest.fixture(scope="module")
def moody_models(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Registered model `moody`: versions 1 and 2 are good, 3 raises, 4 is slow."""
    folder = tmp_path_factory.mktemp("code")
    example = pd.DataFrame({"x": [5.0]})
    for version, behaviour in BEHAVIOURS.items():
        path = folder / f"model{version}.py"
        path.write_text(CODE.format(behaviour=behaviour))
        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                python_model=str(path),
                name="model",
                signature=infer_signature(example, pd.Series([10.0])),
                input_example=example,
                registered_model_name="moody",
                pip_requirements=["pandas"],
            )
    return "moody"


@pytest.fixture
def url(home: Path, moody_models: str) -> str:
    """Version 1 behind a gateway."""
    client = get_deploy_client("local")
    return str(client.create_deployment("d1", "models:/moody/1", config={"gateway": "envoy"})["url"])


@pytest.mark.slow
def test_canary_of_a_good_version_arrives_without_a_lost_request(url: str) -> None:
    with load(url, ROWS) as seen:
        described = get_deploy_client("local").update_deployment("d1", "models:/moody/2", config=CANARY)
    assert failed(seen) == {}
    assert described["traffic"] == {"2": 100}
    assert described["rollout"]["outcome"] == "promoted"
    assert [event["share"] for event in described["rollout"]["events"]] == [10, 50, 100]
    assert seen["r1"] > 0
    assert seen["r2"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("version", "reason"), [(3, "too many errors"), (4, "too slow")])
def test_canary_of_a_bad_version_is_taken_back(url: str, version: int, reason: str) -> None:
    client = get_deploy_client("local")
    with load(url, ROWS) as seen:
        with pytest.raises(RolloutFailed, match=reason):
            client.update_deployment(
                "d1", f"models:/moody/{version}", config={**CANARY, "step_seconds": "20"}
            )
        after = seen["r1"]
        eventually(lambda: seen["r1"] > after + 50, 20, "the stable revision answers on")
    # Whatever failed was an answer of the candidate, whose share was 10 %.
    assert set(failed(seen)) <= {"500"}
    assert sum(failed(seen).values()) <= seen["r2"]
    described = client.get_deployment("d1")
    assert described["traffic"] == {"1": 100}
    assert described["rollout"]["outcome"] == "rolled back"
    assert [row["status"] for row in described["revisions"]] == ["ready", "stopped"]


@pytest.mark.slow
def test_killed_canary_is_taken_back_by_the_next_command(url: str, home: Path) -> None:
    code = (
        "from mlflow.deployments import get_deploy_client as g\n"
        f"g('local').update_deployment('d1', 'models:/moody/2', config={ {**CANARY, 'step_seconds': '60'}!r})"
    )
    target = LocalTarget()
    with load(url, ROWS) as seen:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        eventually(lambda: target.require("d1").weights.get(2) == 10, 60, "the canary has 10 %")
        process.kill()
        process.wait()
        time.sleep(0.5)
        described = release.reconcile(target, quiet)[0]
    assert failed(seen) == {}
    assert described["traffic"] == {"1": 100}
    assert "killed" in described["rollout"]["events"][-1]["reason"]


@pytest.mark.slow
def test_another_terminal_pauses_and_promotes(url: str) -> None:
    tool = str(Path(sys.executable).parent / "mlflow-deploy")
    target = LocalTarget()
    outcome: list[Any] = []
    config = {**CANARY, "step_seconds": "30"}
    update = threading.Thread(
        target=lambda: outcome.append(
            get_deploy_client("local").update_deployment("d1", "models:/moody/2", config=config)
        )
    )
    update.start()
    try:
        eventually(lambda: target.require("d1").weights.get(2) == 10, 60, "the canary has 10 %")
        assert (
            subprocess.run([tool, "rollout", "d1", "pause"], capture_output=True, timeout=60).returncode == 0
        )
        for share in (50, 100):
            release.steer(target, "d1", "promote")
            eventually(lambda share=share: target.require("d1").weights.get(2) == share, 20, f"{share} %")
    finally:
        update.join(60)
    assert outcome[0]["traffic"] == {"2": 100}
    shown = subprocess.run([tool, "rollout", "d1"], capture_output=True, text=True, timeout=60)
    assert "The rollout was promoted." in shown.stdout
    none = subprocess.run([tool, "rollout", "d1", "abort"], capture_output=True, text=True, timeout=60)
    assert none.returncode == 1
    assert none.stderr.startswith("Error: No rollout of deployment 'd1' goes on")
