"""What every converter offers: its capabilities, a refusal with a reason, and candidates to be proven."""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.errors import MissingExtra


class Capability(enum.Enum):
    """What a converter can carry over; asked before a model is given to it."""

    TEXT = "text"
    """Columns of text."""

    TENSOR = "tensor"
    """One plain array as input, without column names."""

    TENSORS = "tensors"
    """Several tensors as input, or one that has a name."""


@dataclass(frozen=True)
class Candidate:
    """One way to build a servable. Nothing is built before `build` is called, nothing believed before parity.

    Attributes:
        label: what distinguishes it, for reports: "float32".
        build: writes the servable's files into the given empty folder and describes them. It may raise
            anything; the error's text becomes the reason why the candidate was rejected.
        probe: for a classifier that answers with labels, the same with the probabilities behind them. It is
            compared and thrown away: a label shows a wrong weight only when it flips.
    """

    label: str
    build: Callable[[Path], Servable]
    probe: Callable[[Path], Servable] | None = None


class Converter(Protocol):
    """A converter module: one source flavor to one form."""

    CAPABILITIES: frozenset[Capability]

    def refuse(self, native: NativeModel) -> str:
        """Why this model cannot be converted, or the empty string."""
        ...

    def hints(self, native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
        """Values per column at which the model is known to change, for edge rows."""
        ...

    def candidates(self, native: NativeModel, answer: Answer) -> Iterator[Candidate]:
        """Candidates, the one to be preferred first; `answer` is a native answer: form and dtypes are kept."""
        ...


@dataclass(frozen=True)
class ConverterEntry:
    """A line of the converter table.

    Attributes:
        loader: the `loader_module` of the MLflow flavor that it reads.
        form: the form it makes, in the words of `-C format=`.
        module: dotted path of the converter module.
        extra: the extra of this package that installs what the module imports.
        on_request: `format=auto` leaves it out: a form for exchange with other tools, not made to serve.
    """

    loader: str
    form: str
    module: str
    extra: str
    on_request: bool = False


CONVERTERS: tuple[ConverterEntry, ...] = (
    ConverterEntry("mlflow.sklearn", "onnx", "mlflow_deploy.conversion.sklearn_onnx", "sklearn"),
    ConverterEntry(
        "mlflow.sklearn", "pmml", "mlflow_deploy.conversion.sklearn_pmml", "pmml", on_request=True
    ),
    ConverterEntry("mlflow.xgboost", "onnx", "mlflow_deploy.conversion.xgboost_onnx", "boosting"),
    ConverterEntry("mlflow.lightgbm", "onnx", "mlflow_deploy.conversion.lightgbm_onnx", "boosting"),
    ConverterEntry("mlflow.onnx", "onnx", "mlflow_deploy.conversion.onnx_onnx", "sklearn"),
    ConverterEntry("mlflow.pytorch", "onnx", "mlflow_deploy.conversion.torch_onnx", "torch"),
    ConverterEntry("mlflow.pytorch", "torchscript", "mlflow_deploy.conversion.torch_script", "torch"),
    ConverterEntry("mlflow.pytorch", "torch_export", "mlflow_deploy.conversion.torch_export", "torch"),
    ConverterEntry("mlflow.tensorflow", "onnx", "mlflow_deploy.conversion.keras_onnx", "tensorflow"),
    ConverterEntry("mlflow.tensorflow", "tflite", "mlflow_deploy.conversion.keras_tflite", "tensorflow"),
    ConverterEntry(
        "mlflow.tensorflow", "savedmodel", "mlflow_deploy.conversion.keras_savedmodel", "tensorflow"
    ),
    ConverterEntry("mlflow.keras", "onnx", "mlflow_deploy.conversion.keras_onnx", "tensorflow"),
    ConverterEntry("mlflow.keras", "tflite", "mlflow_deploy.conversion.keras_tflite", "tensorflow"),
    ConverterEntry("mlflow.keras", "savedmodel", "mlflow_deploy.conversion.keras_savedmodel", "tensorflow"),
)
"""All converters; within one flavor the form that serves fastest stands first."""


def converters_for(loader: str, form: str | None = None) -> list[ConverterEntry]:
    """The converters of this loader module: those that make `form`, or without it those that auto tries."""
    entries = [entry for entry in CONVERTERS if entry.loader == loader]
    return [entry for entry in entries if (entry.form == form if form else not entry.on_request)]


def needs(native: NativeModel) -> frozenset[Capability]:
    """What a converter must be able to carry over for this model."""
    texts = any(column.type == "string" for column in native.columns)
    texts = texts or any(tensor.dtype == "str" for tensor in native.tensors)
    wanted = {
        Capability.TEXT: texts,
        Capability.TENSOR: native.tensor is not None,
        Capability.TENSORS: bool(native.tensors) and native.tensor is None,
    }
    return frozenset(capability for capability, needed in wanted.items() if needed)


def load_converter(entry: ConverterEntry) -> Converter:
    """Import a converter.

    Raises:
        MissingExtra: a library it needs is not installed.
    """
    try:
        module: Converter = importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        what = f"The conversion from {entry.loader} to {entry.form}"
        raise MissingExtra(what, entry.extra, missing=error.name or "") from error
    return module
