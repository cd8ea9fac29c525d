"""One deployment on Docker serves one form after the other: Keras and torch models, and a pyfunc as it is.

Every form gets the image with its own packages only, runs locked down under a random user, and answers through
the gateway as the native model does.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.deployments import get_deploy_client
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.builder import read_sbom
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE, DockerTarget
from tests.engine import BASE, things
from tests.integration.conversion.nets import keras_model, save_keras, save_torch, torch_model

SPACE = f"forms-{uuid.uuid4().hex[:8]}"
USER = "54321:0"
SERVED = ("granian", "msgspec", "numpy")
HEAVY = ("tensorflow", "tensorflow-cpu", "keras", "torch", "mlflow", "mlflow-skinny", "pandas", "onnxruntime")


@pytest.fixture(scope="module")
def networks(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Registered models `keras-net`, `torch-net` and `sklearn-net`; gives rows and native answers by name."""
    folder = tmp_path_factory.mktemp("networks")
    rows = {}
    for name, (save, (model, given)) in {
        "keras-net": (save_keras, keras_model("MLP")),
        "torch-net": (save_torch, torch_model("MLP")),
        "sklearn-net": (save_sklearn, sklearn_model()),
    }.items():
        save(model, given, folder / name)
        mlflow.register_model((folder / name).as_uri(), name)
        rows[name] = given
    return {
        name: (given, mlflow.pyfunc.load_model(f"models:/{name}/1").predict(given))
        for name, given in rows.items()
    }


def sklearn_model() -> tuple[Any, pd.DataFrame]:
    """A pipeline and rows for it."""
    rows, labels = load_iris(return_X_y=True, as_frame=True)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels), rows


def save_sklearn(model: Any, rows: pd.DataFrame, folder: Path) -> None:
    """Save it with the versions that are installed here, as MLflow does by itself."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in ("scikit-learn", "skops")]
    mlflow.sklearn.save_model(model, str(folder), input_example=rows.head(2), pip_requirements=pins)


@pytest.fixture(scope="module")
def deployment(
    engine: Any,
    networks: dict[str, Any],
    with_locks: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of deployment `net`, which the command line creates with the Keras model as users get it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", with_locks(tmp_path_factory.mktemp("home")))
        patch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
        patch.setenv(NAMESPACE_VARIABLE, SPACE)
        command = [str(Path(sys.executable).parent / "mlflow"), "deployments", "create", "-t", "docker"]
        command += ["--name", "net", "-m", "models:/keras-net/1", "-C", f"docker.user={USER}"]
        # Every update of it tells by itself whether the new revision answers.
        command += ["-C", "strategy=recreate", "-C", "keep_revisions=0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        try:
            assert done.returncode == 0, done.stderr
            assert re.search("(onnx|tflite) deployment net is created", done.stdout), done.stdout
            yield get_deploy_client("docker").get_deployment("net")["url"]
            get_deploy_client("docker").delete_deployment("net")
            assert things(engine, SPACE) == []
        finally:
            for name in DockerTarget().names():
                DockerTarget().remove(name)


@pytest.fixture
def updated(deployment: str) -> Callable[..., None]:
    """Update the deployment and say how long that took."""

    def update(uri: str, form: str) -> None:
        begun = time.monotonic()
        done = get_deploy_client("docker").update_deployment("net", uri, config={"format": form})
        print(f"{uri} as {done['format']}: {time.monotonic() - begun:.1f} s, image and all")
        assert done["format"] == form

    return update


def answers(url: str, rows: Any) -> Any:
    """What the deployment answers through the gateway."""
    body = {"inputs": rows.tolist()} if isinstance(rows, np.ndarray) else {
        "dataframe_split": {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}
    }  # fmt: skip
    response = requests.post(f"{url}/invocations", json=body, timeout=30)
    assert response.status_code == 200, response.text
    return np.array(response.json()["predictions"])


def check_container(engine: Any, *, has: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    """The one replica is locked down and healthy, and its image holds these packages and not those."""
    wanted = {"label": [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=revision"]}
    [container] = engine.containers.list(filters=wanted)
    image, host = container.image, container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert container.exec_run(["id", "-u"]).output.strip() == b"54321"
    assert image.labels[labels.KIND] == "model"
    assert image.labels["org.opencontainers.image.version"]
    health = engine.api.inspect_image(image.id)["Config"]["Healthcheck"]["Test"]
    assert container.exec_run(health[1:]).exit_code == 0
    known = {each["name"] for each in read_sbom(engine, image.id)["components"]}
    assert {*has, *SERVED} <= known
    assert not known & set(lacks)
    above = image.attrs["Size"] - engine.images.get(BASE).attrs["Size"]
    print(f"{above / 1e6:.0f} MB above its base")


@pytest.mark.slow
def test_keras_is_served_without_tensorflow(engine: Any, deployment: str, networks: dict[str, Any]) -> None:
    """Nobody asked for a form: the one that answered fastest was taken."""
    rows, native = networks["keras-net"]
    np.testing.assert_allclose(answers(deployment, rows), native, atol=1e-5)
    check_container(engine, has=(), lacks=tuple(name for name in HEAVY if name != "onnxruntime"))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxruntime"), ("tflite", "ai-edge-litert")])
def test_keras_is_served_as(
    engine: Any,
    deployment: str,
    networks: dict[str, Any],
    updated: Callable[..., None],
    form: str,
    package: str,
) -> None:
    updated("models:/keras-net/1", form)
    rows, native = networks["keras-net"]
    np.testing.assert_allclose(answers(deployment, rows), native, atol=1e-5)
    check_container(engine, has=(package,), lacks=tuple(name for name in HEAVY if name != package))


@pytest.mark.slow
def test_torch_is_served_as_torchscript(
    engine: Any, deployment: str, networks: dict[str, Any], updated: Callable[..., None]
) -> None:
    updated("models:/torch-net/1", "torchscript")
    rows, native = networks["torch-net"]
    np.testing.assert_allclose(answers(deployment, rows), native, atol=1e-5)
    check_container(engine, has=("torch",), lacks=tuple(name for name in HEAVY if name != "torch"))
    [replica] = engine.containers.list(
        filters={"label": [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=revision"]}
    )
    code = "import torch; print(torch.version.cuda)"
    assert replica.exec_run([layout.PYTHON, "-c", code]).output == b"None\n"


@pytest.mark.slow
def test_pyfunc_is_served_with_its_own_packages_and_a_slim_mlflow(
    engine: Any, deployment: str, networks: dict[str, Any], updated: Callable[..., None]
) -> None:
    updated("models:/sklearn-net/1", "pyfunc")
    rows, native = networks["sklearn-net"]
    assert answers(deployment, rows).tolist() == native.tolist()
    has, lacks = ("scikit-learn", "mlflow-skinny", "pandas"), ("mlflow", "torch", "onnxruntime")
    check_container(engine, has=has, lacks=lacks)
