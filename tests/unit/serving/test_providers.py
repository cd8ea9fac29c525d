"""What a server computes on: which providers it asks for, and what it does without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.backends.base import load_model
from mlflow_deploy.serving.backends.devices import GpuMissing, check_device, gpus, wants_gpu
from mlflow_deploy.serving.backends.onnx import choose_providers, open_session
from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.settings import ServingSettings
from tests.bundles import adder_bundle

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
GPU_BUILD, CPU_BUILD = [TENSORRT, CUDA, CPU], ["AzureExecutionProvider", CPU]
no_gpu_here = pytest.mark.skipif(gpus() > 0, reason="this machine has a GPU")


def settings(**values: Any) -> ServingSettings:
    """Settings as a server reads them."""
    return parse_config({"serving": values}).serving


def test_the_names_are_onnx_runtimes() -> None:
    assert {TENSORRT, CUDA, CPU} <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize(
    ("available", "gpu", "provider", "expected"),
    [
        (CPU_BUILD, False, "auto", [CPU]),
        (CPU_BUILD, True, "auto", [CPU]),
        (GPU_BUILD, False, "tensorrt", [CPU]),
        (GPU_BUILD, True, "auto", [CUDA, CPU]),
        (GPU_BUILD, True, "cuda", [CUDA, CPU]),
        (GPU_BUILD, True, "tensorrt", [(TENSORRT, {}), CUDA, CPU]),
    ],
)
def test_the_gpu_comes_first_and_the_cpu_is_always_there(
    available: list[str], gpu: bool, provider: str, expected: list[Any]
) -> None:
    assert choose_providers(available, settings(gpu_provider=provider), gpu=gpu, cache="") == expected


def test_tensorrt_keeps_its_engines() -> None:
    first, *_ = choose_providers(
        GPU_BUILD, settings(gpu_provider="tensorrt"), gpu=True, cache="/data/engines"
    )
    assert first[0] == TENSORRT
    assert isinstance(first, tuple)
    assert first[1]["trt_engine_cache_enable"]
    assert first[1]["trt_engine_cache_path"] == "/data/engines"


def test_an_onnx_runtime_for_cpus_is_refused_where_a_gpu_is_asked_for() -> None:
    with pytest.raises(GpuMissing, match=r"built for CPUs.*gpu_fallback=cpu"):
        choose_providers(CPU_BUILD, settings(device="gpu"), gpu=True, cache="")
    allowed = settings(device="gpu", gpu_fallback="cpu")
    assert choose_providers(CPU_BUILD, allowed, gpu=True, cache="") == [CPU]


@no_gpu_here
def test_a_model_for_a_gpu_is_refused_without_one(tmp_path: Path) -> None:
    bundle = adder_bundle(tmp_path / "store", tmp_path / "work", 1.0)
    with pytest.raises(GpuMissing, match=r"driver offers none.*gpu_fallback=cpu"):
        load_model(bundle, settings(device="gpu"))


@no_gpu_here
def test_the_cpu_takes_over_where_that_is_allowed_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = adder_bundle(tmp_path / "store", tmp_path / "work", 1.0)
    with caplog.at_level(logging.WARNING):
        model = load_model(bundle, settings(device="gpu", gpu_fallback="cpu", gpu_provider="tensorrt"))
    assert model.providers == (CPU,)
    assert caplog.messages == ["the model computes on the CPU, not on a GPU"]
    caplog.clear()
    assert open_session(bundle, settings()).get_providers() == [CPU]
    assert caplog.messages == []


def test_forms_that_know_no_gpu_are_refused_on_one() -> None:
    with pytest.raises(GpuMissing, match=r"form tflite computes on CPUs only; format=onnx"):
        check_device("tflite", settings(device="gpu"))
    with pytest.raises(ConfigError, match=r"TensorRT runs ONNX models.*torchscript"):
        check_device("torchscript", settings(gpu_provider="tensorrt"))
    check_device("tflite", settings())


def test_a_cpu_that_is_asked_for_is_taken() -> None:
    assert not wants_gpu(settings(device="cpu"))


@pytest.mark.parametrize("key", ["device", "gpu_provider", "gpu_fallback"])
def test_other_words_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"serving.{key} cannot be 'tpu'"):
        settings(**{key: "tpu"})
