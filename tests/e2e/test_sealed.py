"""A sealed model is deployed like any other: encrypted on the disk, opened by the server that has the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import StartFailed
from mlflow_deploy.flavors import sealed
from mlflow_deploy.security.keys import new_pair, new_secret


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`, a pair, and `other`, a secret."""
    folder = tmp_path_factory.mktemp("keys")
    new_pair(folder / "own.pem", folder / "own.pub.pem")
    new_secret(folder / "other.key")
    return folder


@pytest.fixture(scope="module")
def sealed_iris(iris_models: str, keys: Path) -> str:
    """Registered model `iris-sealed`: version 1 of `iris` as sealed ONNX."""
    info = sealed.log_model(
        f"models:/{iris_models}/1",
        name="iris",
        registered_model_name="iris-sealed",
        keys=f"file:{keys}/own.pub.pem",
    )
    assert "mlflow_deploy.sealed" in info.flavors
    return "models:/iris-sealed/1"


@pytest.mark.slow
def test_deployed_with_the_key_and_never_without(
    home: Path, sealed_iris: str, keys: Path, iris_models: str, iris_rows: Any
) -> None:
    client = get_deploy_client("local")
    with pytest.raises(StartFailed, match="sealed for another key"):
        client.create_deployment("iris", sealed_iris, config={"serving.seal_key": f"file:{keys}/other.key"})
    assert client.list_deployments() == []
    made = client.create_deployment("iris", sealed_iris, config={"serving.seal_key": f"file:{keys}/own.pem"})
    assert made["format"] == "onnx"
    assert any("encrypted" in note for note in made["notes"])
    native = mlflow.pyfunc.load_model(f"models:/{iris_models}/1").predict(iris_rows)
    answer = client.predict("iris", iris_rows).get_predictions("ndarray").ravel()
    np.testing.assert_array_equal(answer, native)
    (bundle,) = (home / "bundles").glob("sha256-*")
    assert [path.name for path in (bundle / "servable").iterdir()] == ["model.sealed"]
