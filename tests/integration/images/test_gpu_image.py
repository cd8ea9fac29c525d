"""GPU images: built and refused without a GPU, and answering on one where the engine has it."""

from __future__ import annotations

import os
import sys
from typing import Any

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.builder import BuiltImage
from mlflow_deploy.images.engine import docker_errors
from tests.engine import LARGE_IMAGES
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
    [folder] = said(engine, gpu_image, "cat", "/etc/ld.so.conf.d/mlflow-deploy.conf").split()
    assert folder.startswith(f"{layout.VENV}/")
    assert folder.endswith(f"/{LIBRARIES}")


def test_it_refuses_to_start_without_a_gpu(engine: Any, gpu_image: BuiltImage) -> None:
    container = engine.containers.run(gpu_image.name, detach=True, labels={TEST_LABEL: MARK})
    try:
        assert container.wait(timeout=30)["StatusCode"] == layout.BROKEN
        printed = container.logs().decode()
    finally:
        container.remove(force=True)
    assert printed.startswith("Error: This image needs a GPU and finds none.")
    assert "gpu_fallback=cpu" in printed


@pytest.fixture(scope="module")
def real_image(engine: Any, onnx_bundle: Bundle) -> BuiltImage:
    """The image that users get, with ONNX Runtime for GPUs and the libraries of CUDA and cuDNN."""
    return build(onnx_bundle, device="gpu")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get(LARGE_IMAGES),
    reason=f"it fetches 2 GB and builds for five minutes; {LARGE_IMAGES}=1 runs it",
)
def test_the_real_one_lacks_nothing_but_the_driver(
    engine: Any, real_image: BuiltImage, onnx_bundle: Bundle
) -> None:
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine has a GPU")
    code = "import onnxruntime; print(*onnxruntime.get_available_providers())"
    assert said(engine, real_image, layout.PYTHON, "-c", code).split() == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    folder = f"{layout.VENV}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    linked = said(engine, real_image, "ldd", f"{folder}/onnxruntime/capi/libonnxruntime_providers_cuda.so")
    missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    assert missing == ["libcuda.so.1"]
    # ONNX Runtime loads these by their names, when it needs them.
    code = "import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]"
    said(engine, real_image, layout.PYTHON, "-c", code, "libcudnn.so.9", "libcudnn_graph.so.9")
    with pytest.raises(docker_errors().ContainerError, match="needs a GPU and finds none"):
        engine.containers.run(real_image.id, remove=True, labels={TEST_LABEL: MARK})
    with started(engine, real_image.name, environment={layout.FALLBACK_VARIABLE: "cpu"}) as running:
        running.answers_its_example(onnx_bundle)
        assert httpx.get(f"{running.url}/version").json()["providers"] == ["CPUExecutionProvider"]
        assert 'provider="CPUExecutionProvider"' in httpx.get(f"{running.url}/metrics").text
        assert "the model computes on the CPU, not on a GPU" in running.container.logs().decode()


@pytest.mark.slow
@pytest.mark.gpu
def test_it_answers_on_the_gpu(engine: Any, request: pytest.FixtureRequest, onnx_bundle: Bundle) -> None:
    if "nvidia" not in engine.info()["Runtimes"]:
        pytest.skip("this engine has no GPU")
    from docker.types import DeviceRequest

    built = request.getfixturevalue("real_image")
    every = DeviceRequest(count=-1, capabilities=[["gpu"]])
    with started(engine, built.name, device_requests=[every], mem_limit="8g") as running:
        running.answers_its_example(onnx_bundle)
        assert httpx.get(f"{running.url}/version").json()["providers"][0] == "CUDAExecutionProvider"
        assert 'provider="CUDAExecutionProvider"' in httpx.get(f"{running.url}/metrics").text
    assert engine.images.get(built.name).labels[labels.KIND] == "model"


def said(engine: Any, image: BuiltImage, program: str, *arguments: str) -> str:
    """What a program in an image prints; fails when the program does."""
    output: bytes = engine.containers.run(
        image.id, list(arguments), entrypoint=program, remove=True, labels={TEST_LABEL: MARK}
    )
    return output.decode()
