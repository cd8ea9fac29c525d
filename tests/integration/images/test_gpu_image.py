"""GPU images: built and refused without a GPU, and answering on one where the engine has it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.builder import BuiltImage
from tests.integration.images.conftest import MARK, TEST_LABEL, build
from tests.integration.images.running import started
from tests.wheels import small_lock

LIBRARIES = "nvidia/cudnn/lib"


@pytest.fixture(scope="module")
def gpu_image(engine: Any, onnx_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """A GPU image whose one package has a library where those of CUDA have theirs."""
    folder = tmp_path_factory.mktemp("gpu")
    return build(onnx_bundle, device="gpu", **small_lock(folder, library=f"{LIBRARIES}/libcudnn.so.9"))


def test_it_has_a_runtime_of_its_own_that_finds_the_libraries(engine: Any, gpu_image: BuiltImage) -> None:
    image = engine.images.get(gpu_image.name)
    assert f"{layout.DEVICE_VARIABLE}=gpu" in image.attrs["Config"]["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in image.attrs["Config"]["Env"]
    said = engine.containers.run(
        image.id, ["/etc/ld.so.conf.d/mlflow-deploy.conf"], entrypoint="cat", remove=True,
        labels={TEST_LABEL: MARK},
    )  # fmt: skip
    [folder] = said.decode().split()
    assert folder.startswith(f"{layout.VENV}/")
    assert folder.endswith(f"/{LIBRARIES}")


def test_it_refuses_to_start_without_a_gpu(engine: Any, gpu_image: BuiltImage) -> None:
    container = engine.containers.run(gpu_image.name, detach=True, labels={TEST_LABEL: MARK})
    try:
        assert container.wait(timeout=30)["StatusCode"] == layout.BROKEN
        said = container.logs().decode()
    finally:
        container.remove(force=True)
    assert said.startswith("Error: This image needs a GPU and finds none.")
    assert "gpu_fallback=cpu" in said


@pytest.mark.slow
@pytest.mark.gpu
def test_it_answers_on_the_gpu(engine: Any, onnx_bundle: Bundle) -> None:
    if "nvidia" not in engine.info()["Runtimes"]:
        pytest.skip("this engine has no GPU")
    from docker.types import DeviceRequest

    built = build(onnx_bundle, device="gpu")
    request = DeviceRequest(count=-1, capabilities=[["gpu"]])
    with started(engine, built.name, device_requests=[request], mem_limit="8g") as running:
        running.answers_its_example(onnx_bundle)
        assert httpx.get(f"{running.url}/version").json()["providers"][0] == "CUDAExecutionProvider"
    assert engine.images.get(built.name).labels[labels.KIND] == "model"
