"""Runs torch.export servables (.pt2) with PyTorch."""

from __future__ import annotations

from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.backends.torch_graph import load_module
from mlflow_deploy.settings import ServingSettings


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the program.

    Raises:
        MissingExtra: PyTorch is not installed.
        ConfigError: the bundle's feeds or outputs contradict each other.
    """
    return load_module(bundle, settings, "torch_export", _read)


def _read(torch: Any, path: str, device: str) -> Any:
    program = torch.export.load(path)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()
