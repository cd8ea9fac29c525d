"""Networks in every form that GPUs run, on a real GPU: they compute there, say so, and answer well."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.base import Call, Model, load_model
from mlflow_deploy.serving.backends.devices import gpus
from mlflow_deploy.settings import ServingSettings
from tests.integration.serving.bundles import network_bundles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="the NVIDIA driver offers no GPU to this machine"),
]

FORMS = {"onnx": "torch", "torchscript": "torch", "torch_export": "torch", "savedmodel": "keras"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A network in each form."""
    return network_bundles(tmp_path_factory.mktemp("forms"), FORMS)


def answers_its_example(bundle: Bundle, model: Model) -> None:
    """Send the bundle's example and compare the answer with the native model's."""
    example = bundle.document("example.json")
    assert example is not None
    call: Call = model.parse_json(msgspec.json.encode(example["request"]))
    call.expires = math.inf
    answer = msgspec.json.decode(model.to_json(model.run(call)))
    np.testing.assert_allclose(
        np.array(answer["predictions"], float), np.array(example["predictions"], float), atol=2e-3
    )


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_on_the_gpu(form: str, bundles: dict[str, Bundle]) -> None:
    model = load_model(bundles[form], ServingSettings(device="gpu"))
    assert model.providers[0] == ("CUDAExecutionProvider" if form == "onnx" else "CUDA")
    answers_its_example(bundles[form], model)


def test_the_cpu_is_taken_when_it_is_asked_for(bundles: dict[str, Bundle]) -> None:
    model = load_model(bundles["torchscript"], ServingSettings(device="cpu"))
    assert model.providers == ("CPU",)
    answers_its_example(bundles["torchscript"], model)


def test_tensorrt_is_taken_when_it_is_asked_for_and_keeps_its_engine(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_libs", reason="pip install tensorrt-cu13-libs from NVIDIA's index")
    settings = ServingSettings(device="gpu", gpu_provider="tensorrt", engine_cache=str(tmp_path))
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        model = load_model(bundles["onnx"], settings)
        assert model.providers[0] == "TensorrtExecutionProvider"
        answers_its_example(bundles["onnx"], model)
        seconds.append(time.perf_counter() - begun)
    assert list(tmp_path.glob("*.engine"))
    print(f"first start {seconds[0]:.1f} s, with its engine {seconds[1]:.1f} s")
