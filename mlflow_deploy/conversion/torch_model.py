"""PyTorch models of MLflow as modules that can be exported: refusals, wrapping, tracing inputs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mlflow_deploy.conversion import networks
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.native import NativeModel

REQUIREMENTS = ("numpy", "torch>=2.9")

_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


class Columns(torch.nn.Module):
    """A model whose answer of shape [rows, k] is given as k columns, as MLflow answers a DataFrame."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        """The columns."""
        return torch.unbind(self.module(x), 1)


def refuse(native: NativeModel) -> str:
    """Why a model has no graph at all, or the empty string."""
    if len(native.tensors) > 1 or (native.tensors and native.tensors[0].name):
        return (
            "MLflow's pytorch flavor hands one unnamed tensor to the model, and the signature names several; "
            "log it with one array as input_example="
        )
    return networks.refuse_signature(native, columns=True) or networks.refuse_answers(native)


def refuse_script(native: NativeModel, what: str) -> str:
    """Why a TorchScript module cannot become `what`, or the empty string."""
    if not isinstance(native.raw(), torch.jit.ScriptModule):
        return ""
    return f"the model was logged as TorchScript, which has no way to {what}; log the torch.nn.Module itself"


def module(native: NativeModel, answer: Answer) -> torch.nn.Module:
    """The model with the outputs of its answer: one tensor, or one for each column."""
    raw: torch.nn.Module = native.raw()
    if answer.form != "columns":
        return raw
    with torch.no_grad():
        tensor = raw(*tracing(native))
    return raw if tensor.ndim == 1 else Columns(raw)


def tracing(native: NativeModel) -> tuple[torch.Tensor, ...]:
    """Tensors to trace with."""
    graph = networks.inputs(native)
    return tuple(tensors(networks.arrays(native, graph), [item.name for item in graph]))


def export(native: NativeModel, answer: Answer) -> torch.export.ExportedProgram:
    """The model as an exported program whose free dimensions stay free.

    Raises:
        NotImplementedError: its Python code has no graph; the text says why and what to do.
    """
    free = torch.export.Dim.DYNAMIC
    graph = networks.inputs(native)
    shapes = tuple({axis: free for axis, size in enumerate(item.shape) if size == -1} for item in graph)
    example = tracing(native)
    wrapped = module(native, answer)
    if isinstance(wrapped, Columns):
        named: Any = {"x": shapes[0]}
    else:
        named = shapes
    try:
        with quiet():
            return torch.export.export(wrapped, example, dynamic_shapes=named)
    except Exception as error:
        raise NotImplementedError(_cause(error)) from error


def _cause(error: Exception) -> str:
    text = str(error)
    if (
        "data-dependent" in text
        or "Data dependent" in text
        or "data-dependent" in type(error).__name__.lower()
    ):
        return (
            "its forward decides on values of tensors, which a traced graph cannot; "
            "write it with torch.where or torch.cond, or use format=torchscript"
        )
    if "Constraints violated" in text or ("marked" in text and "as dynamic" in text):
        return (
            "torch.export fixes a dimension that the signature leaves free, as it does with the length of "
            "sequences in LSTM and GRU; give it a size in the signature, or use format=torchscript"
        )
    return f"torch.export says: {networks.first_line(error)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters: deprecations, missing torchvision, how LSTM keeps its weights, progress."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Not TracerWarning, which says that a trace is wrong.
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def tensors(feeds: Mapping[str, Array], names: Sequence[str]) -> list[torch.Tensor]:
    """Arrays as tensors, in order; one that may not be written to, such as a view of a table, is copied."""
    return [torch.from_numpy(np.require(feeds[name], requirements=("C", "W"))) for name in names]


def listed(result: Any) -> Sequence[Any]:
    """The outputs of a module as arrays."""
    tensors = result if isinstance(result, (tuple, list)) else (result,)
    return [tensor.numpy() for tensor in tensors]
