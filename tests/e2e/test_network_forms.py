"""Networks of PyTorch and Keras are deployed in the form that `-C format=` names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.deployments import get_deploy_client

from tests.integration.conversion.attempts import same
from tests.integration.conversion.nets import keras_model, save_keras, save_torch, torch_model


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "tflite"])
def test_a_network_serves_in_the_form_that_was_asked_for(form: str, home: Path, tmp_path: Path) -> None:
    if form == "torchscript":
        model, rows = torch_model("MLP")
        folder = save_torch(model, rows, tmp_path / "model")
    else:
        model, rows = keras_model("MLP")
        folder = save_keras(model, rows, tmp_path / "model")
    client: Any = get_deploy_client("local")

    client.create_deployment("net", str(folder), config={"format": form})

    assert client.get_deployment("net")["flavor"] == form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = mlflow.pyfunc.load_model(str(folder)).predict(rows)
    served = client.predict("net", {"inputs": rows.tolist()})
    answer = json.loads(served.to_json()) if hasattr(served, "to_json") else served
    same(answer["predictions"] if isinstance(answer, dict) else answer, native.tolist())
    client.delete_deployment("net")
