"""Runs TorchScript servables with PyTorch."""

from __future__ import annotations

from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.backends.torch_graph import load_module
from mlflow_deploy.settings import ServingSettings


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the module.

    Raises:
        MissingExtra: PyTorch is not installed.
        ConfigError: the bundle's feeds or outputs contradict each other.
    """
    return load_module(bundle, settings, "torchscript", _read)


def _read(torch: Any, path: str, device: str) -> Any:
    return torch.jit.load(path, map_location=device).eval()
