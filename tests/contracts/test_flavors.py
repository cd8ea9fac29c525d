"""The flavor contract over every flavor; PMML's is in tests/integration/conversion/pmml_cases.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier

from mlflow_deploy.flavors.table import flavor_module
from mlflow_deploy.security.keys import KEY_VARIABLE, new_pair
from mlflow_deploy.testing.flavors import FlavorCase, FlavorContract


@pytest.fixture(scope="module")
def wine() -> tuple[Any, Any]:
    """Three rows of each class, and a forest's labels for them."""
    features, labels = load_wine(return_X_y=True, as_frame=True)
    model = RandomForestClassifier(10, random_state=0).fit(features, labels)
    rows = features.iloc[[0, 1, 2, 70, 71, 72, 170, 171, 172]].reset_index(drop=True)
    return model, rows


@pytest.fixture(scope="module")
def images() -> Any:
    """Nine rows of eight numbers."""
    return np.random.default_rng(7).normal(size=(9, 8)).astype("float32")


class TestOnnx(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, wine: tuple[Any, Any]) -> FlavorCase:
        model, rows = wine
        return FlavorCase(flavor_module("onnx"), model, rows, model.predict(rows))


class TestSealed(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, wine: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> FlavorCase:
        folder: Path = tmp_path_factory.mktemp("keys")
        private, public = folder / "private.pem", folder / "public.pem"
        new_pair(private, public)
        model, rows = wine
        return FlavorCase(
            flavor_module("sealed"),
            model,
            rows,
            model.predict(rows),
            options={"keys": f"file:{public}"},
            environment={KEY_VARIABLE: f"file:{private}"},
        )


@pytest.mark.slow
class TestTorchScript(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, images: Any) -> FlavorCase:
        model = _torch_network()
        return FlavorCase(flavor_module("torchscript"), model, images, _torch_answer(model, images))


@pytest.mark.slow
class TestTorchExport(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, images: Any) -> FlavorCase:
        import torch

        model = _torch_network()
        rows = torch.export.Dim("rows")
        program = torch.export.export(model, (torch.from_numpy(images),), dynamic_shapes=({0: rows},))
        return FlavorCase(flavor_module("torch_export"), program, images, _torch_answer(model, images))


def _torch_network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()


def _torch_answer(model: Any, rows: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(rows)).numpy()


@pytest.mark.slow
class TestSavedModel(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, images: Any) -> FlavorCase:
        model = _keras_network()
        return FlavorCase(flavor_module("savedmodel"), model, images, np.asarray(model(images)))


@pytest.mark.slow
class TestTfLite(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, images: Any) -> FlavorCase:
        model = _keras_network()
        return FlavorCase(flavor_module("tflite"), model, images, np.asarray(model(images)))


def _keras_network() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.layers.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    )
