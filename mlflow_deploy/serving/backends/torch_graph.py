"""Runs a PyTorch module as a graph: what TorchScript and torch.export servables share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.backends.devices import wants_gpu, without_gpu
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.tuning import cpu_quota
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


def load_module(
    bundle: Bundle, settings: ServingSettings, form: str, read: Callable[[Any, str, str], Any]
) -> GraphModel:
    """Load the servable with PyTorch.

    Args:
        form: the form's name in errors.
        read: gives the callable module from the library `torch`, the file's path, and `cpu` or `cuda`.

    Raises:
        MissingExtra: PyTorch is not installed.
        GpuMissing: a GPU is asked for and cannot be used.
        ConfigError: the bundle's feeds or outputs contradict each other.
    """
    if not settings.spinning:
        # OpenMP's threads burn a core while no request comes; read when the library is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The {form} form", "torch", missing=error.name or "torch") from error
    device = "cpu"
    if wants_gpu(settings):
        if torch.cuda.is_available():
            device = "cuda"
        else:
            without_gpu(settings, "the installed PyTorch is built for CPUs, or not for this driver")
    torch.set_num_threads(settings.intra_op_threads or cpu_quota())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = read(torch, os.fspath(bundle.servable_path), device)
    names = [feed.name for feed in bundle.manifest.servable.feeds]
    return GraphModel(bundle, settings, TorchGraph(torch, module, names, device), (device.upper(),))


class TorchGraph:
    """A module that takes tensors in the order of the servable's feeds.

    Args:
        device: where the module's weights are, `cpu` or `cuda`.
    """

    interruptible = False

    def __init__(self, torch: Any, module: Any, inputs: list[str], device: str) -> None:
        self._torch, self._module, self._inputs, self._device = torch, module, inputs, device

    def run(self, feeds: Feeds, expires: float) -> list[Array]:
        """The outputs, in the servable's order."""
        with self._torch.inference_mode():
            # PyTorch warns of arrays that may not be written to, which those in requests of tensors are.
            arrays = [np.require(feeds[name], requirements=("C", "W")) for name in self._inputs]
            result = self._module(*[self._torch.from_numpy(array).to(self._device) for array in arrays])
        outputs = result if isinstance(result, tuple | list) else (result,)
        return [output.cpu().numpy() for output in outputs]

    def expire(self, now: float) -> None:
        """Do nothing: PyTorch cannot be stopped."""
