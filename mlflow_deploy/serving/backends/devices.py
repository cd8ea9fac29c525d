"""Where a servable computes: on a GPU or on the CPU, and what happens when the wanted GPU is not there."""

from __future__ import annotations

import ctypes

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.settings import GPU_FORMS, ServingSettings


class GpuMissing(ConfigError):
    """A GPU is asked for and cannot be used."""

    code = "GPU_MISSING"

    def __init__(self, why: str) -> None:
        super().__init__(
            "This revision shall compute on a GPU and cannot",
            why=why,
            hint="Give it a GPU with its libraries, or allow the CPU with gpu_fallback=cpu",
        )


def gpus() -> int:
    """How many GPUs the NVIDIA driver offers to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def wants_gpu(settings: ServingSettings) -> bool:
    """Whether the model goes to a GPU, if its library can: there is one, and the settings allow it."""
    return settings.device != "cpu" and gpus() > 0


def check_device(kind: str, settings: ServingSettings) -> None:
    """Refuse, or report, what no library is needed to see.

    Args:
        kind: the servable's form.

    Raises:
        GpuMissing: a GPU is asked for, and there is none, or the form has no use for one.
        ConfigError: TensorRT is asked for with a form that it cannot run.
    """
    if settings.gpu_provider == "tensorrt" and kind != "onnx":
        raise ConfigError(
            f"TensorRT runs ONNX models, and this one is of form {kind}",
            hint="Deploy it with format=onnx, or with gpu_provider=cuda",
        )
    if settings.device != "gpu":
        return
    if kind not in GPU_FORMS:
        without_gpu(settings, f"the form {kind} computes on CPUs only; format=onnx does not")
    elif not gpus():
        without_gpu(settings, "the NVIDIA driver offers none")


def without_gpu(settings: ServingSettings, why: str) -> None:
    """Report that the model computes on the CPU although there was talk of a GPU.

    Raises:
        GpuMissing: the settings do not allow that.
    """
    if settings.device == "gpu" and settings.gpu_fallback != "cpu":
        raise GpuMissing(why)
    logger().warning("the model computes on the CPU, not on a GPU", extra={"fields": {"why": why}})
