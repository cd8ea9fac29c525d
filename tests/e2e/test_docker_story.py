"""A new user's day on Docker, as commands: deploy, update as a canary, take it back, delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_deploy.images.catalog import prune_images
from mlflow_deploy.lifecycle.prune import prune
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE, DockerTarget
from tests.e2e.load import failed, load, quiet
from tests.engine import BASE, things
from tests.waiting import eventually

BIN = Path(sys.executable).parent
SPACE = f"day-{uuid.uuid4().hex[:8]}"
FLIGHTS = pd.DataFrame({"distance": np.arange(10.0) * 100, "hour": np.arange(10.0)})


@pytest.fixture(scope="module")
def day(
    engine: Any, tracking: str, with_locks: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A registry of its own with flight-delay 1, in Production, and 2; and a namespace of its own."""
    folder = tmp_path_factory.mktemp("day")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", with_locks(folder / "home"))
        patch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
        patch.setenv(NAMESPACE_VARIABLE, SPACE)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.setenv(name, uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            _register(folder)
            yield folder
        finally:
            mlflow.set_tracking_uri(tracking)
            mlflow.set_registry_uri(tracking)
            mlflow.set_experiment("tests")
            for name in DockerTarget().names():
                DockerTarget().remove(name)
            prune_images(keep=0, dry_run=False, model="flight-delay", progress=quiet)


def _register(folder: Path) -> None:
    mlflow.create_experiment("day", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("day")
    for strength in (1.0, 0.1):
        model = LogisticRegression(C=strength).fit(FLIGHTS, FLIGHTS["distance"] > 400)
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                model,
                name="model",
                input_example=FLIGHTS.head(2),
                registered_model_name="flight-delay",
                pip_requirements=["scikit-learn"],
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        mlflow.MlflowClient().transition_model_version_stage("flight-delay", "1", "Production")


def typed(line: str, *, code: int = 0, **more: Any) -> str:
    """Type a command; its exit status must be `code`. Returns what it printed."""
    tool, *words = line.split()
    done = subprocess.run(
        [str(BIN / tool), *words], capture_output=True, text=True, timeout=170, **{"env": os.environ, **more}
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed, printed
    return done.stdout if code == 0 else printed


@pytest.mark.slow
def test_deploy_update_roll_back_delete(engine: Any, day: Path) -> None:
    printed = typed("mlflow deployments create -t docker --name flights -m models:/flight-delay/Production")
    assert "onnx deployment flights is created" in printed
    target = DockerTarget()
    url = target.url(target.require("flights"))
    planned = json.loads(typed("mlflow-deploy plan flights -m models:/flight-delay/2 --json"))
    assert planned["target"] == "docker"
    # A second version builds on the runtime of the first.
    assert (planned["image"]["action"], planned["image"]["runtime"]) == ("build", "reuse")
    with load(url, FLIGHTS, rate=100) as seen:
        typed(
            "mlflow deployments update -t docker --name flights -m models:/flight-delay/2 -C strategy=canary "
            "-C canary_steps=10,50 -C step_seconds=2"
        )
        before = seen["r2"]
        eventually(lambda: seen["r2"] > before + 50, 20, "version 2 answers")
        # The tracking server is down, and nobody says which target it is.
        down = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
        down["MLFLOW_REGISTRY_URI"] = down["MLFLOW_TRACKING_URI"]
        typed("mlflow-deploy rollback flights", env=down)
        before = seen["r1"]
        eventually(lambda: seen["r1"] > before + 50, 20, "version 1 answers again")
        status = json.loads(typed("mlflow-deploy status flights --json", env=down))[0]
    print(
        f"{seen['200']} answers, {seen['r1']} of version 1, {seen['r2']} of version 2, others {failed(seen)}"
    )
    assert failed(seen) == {}
    assert (status["target"], status["status"], status["model_version"]) == ("docker", "ready", "1")
    assert [event["share"] for event in status["rollout"]["events"]] == [10, 50, 100]
    typed("mlflow deployments delete -t docker --name flights -C revision=2", env=down)
    assert not [name for name in things(engine, SPACE) if ".r2" in name]
    history = json.loads(typed("mlflow-deploy history flights --json", env=down))
    assert [(each["action"], each["outcome"]) for each in history] == [
        ("create", "done"),
        ("update", "started"),
        ("update", "done"),
        ("rollback", "done"),
        ("delete-revision", "done"),
    ]
    assert "flights is deleted" in typed("mlflow deployments delete -t docker --name flights")
    assert things(engine, SPACE) == []


def test_prune_shows_and_removes_what_killed_commands_left(engine: Any, tmp_path: Path) -> None:
    """Things with the labels of a deployment that has no record, as a kill in `create` leaves them."""
    target = DockerTarget(tmp_path, namespace=f"{SPACE}-left")
    names = target._names
    api = engine.api
    api.create_network(names.network("ghost"), labels=names.labels("ghost", "network"))
    port = names.labels("ghost", "address", port="1", host="127.0.0.1")
    api.create_volume(f"{names.network('ghost')}.port", labels=port)
    container = names.replica("ghost", 1, 1)
    labels = names.labels(
        "ghost", "revision", revision="1", replica="1", bundle="b", published="no", record="{}"
    )
    made = api.create_container(BASE, ["sleep", "600"], name=container, labels=labels)
    try:
        shown = prune([target], remove=False, progress=quiet)
        assert [(orphan.kind, orphan.name) for orphan in shown.orphans] == [
            ("container", container),
            ("network", names.network("ghost")),
            ("volume", f"{names.network('ghost')}.port"),
        ]
        assert len(things(engine, f"{SPACE}-left")) == 3
        assert prune([target], remove=True, progress=quiet).orphans == shown.orphans
        assert things(engine, f"{SPACE}-left") == []
        assert prune([target], remove=True, progress=quiet).orphans == ()
    finally:
        if things(engine, f"{SPACE}-left"):
            api.remove_container(made["Id"], force=True)
            target.remove("ghost")
