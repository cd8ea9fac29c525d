"""The interface between protocols and models, and the table of back ends."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.backends.devices import check_device
from mlflow_deploy.serving.sealed import in_the_clear
from mlflow_deploy.serving.signature import Signature
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


class Call(msgspec.Struct, gc=False):
    """A parsed request.

    Attributes:
        data: what the model's `run` takes; only the back end that made it looks inside.
        rows: number of rows.
        stackable: calls with the same, non-empty key may be computed in one model call.
        expires: `time.perf_counter()` after which nobody waits for the result; infinite when there is no limit.
        begun: when the model call began; 0 as long as it has not.
        ended: when it ended.
        batch: rows of the model call that this call led, 0 when it was computed in another's.
        asked: what `data` was, for the capture; None when nothing is captured.
        answer: the result, for the same.
    """

    data: Any
    rows: int
    stackable: tuple[Any, ...] = ()
    expires: float = math.inf
    begun: float = 0.0
    ended: float = 0.0
    batch: int = 0
    asked: Any = None
    answer: Any = None


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the Open Inference Protocol: numpy dtype name, or `str`; -1 is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    required: bool = True


class Model(Protocol):
    """A loaded servable. All methods are called from several threads at once."""

    signature: Signature | None
    providers: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    interruptible: bool
    """Calls past their `expires` are ended by `expire`."""

    def expire(self, now: float) -> None:
        """End the calls that are past their `expires`; does nothing when the model is not interruptible."""

    def parse_json(self, body: bytes) -> Call:
        """The call in a JSON body of MLflow's /invocations.

        Raises:
            RequestError: the body cannot be read or does not fit the signature.
        """

    def parse_csv(self, body: bytes) -> Call:
        """The call in a CSV body; same errors."""

    def parse_parquet(self, body: bytes) -> Call:
        """The call in a Parquet body; same errors."""

    def parse_tensors(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Call:
        """The call in named tensors; same errors."""

    def run(self, call: Call) -> Any:
        """Compute a call.

        Raises:
            RequestError: the call does not fit the model, which some models only notice here.
            Exception: whatever the model raises.
        """

    def to_json(self, result: Any) -> bytes:
        """The body of MLflow's answer."""

    def to_tensors(self, result: Any) -> list[tuple[str, Array]]:
        """The answer as named tensors."""


@runtime_checkable
class Stackable(Protocol):
    """A model that can compute the rows of several calls in one."""

    def run(self, call: Call) -> Any:
        """Compute a call."""

    def stack(self, calls: Sequence[Call]) -> Call:
        """One call with the rows of several, which have equal `stackable` keys."""

    def split(self, result: Any, calls: Sequence[Call]) -> list[Any]:
        """The parts of a stacked call's result, in order."""


_BACKENDS = {
    "onnx": "mlflow_deploy.serving.backends.onnx",
    "pmml": "mlflow_deploy.serving.backends.pmml",
    "pyfunc": "mlflow_deploy.serving.backends.pyfunc",
    "savedmodel": "mlflow_deploy.serving.backends.savedmodel",
    "tflite": "mlflow_deploy.serving.backends.tflite",
    "torch_export": "mlflow_deploy.serving.backends.torch_export",
    "torchscript": "mlflow_deploy.serving.backends.torchscript",
}


def load_model(bundle: Bundle, settings: ServingSettings) -> Model:
    """Load the bundle's servable; a sealed one is opened in memory with the key of `settings.seal_key`.

    Raises:
        ConfigError: the servable's form is unknown to this server, or the bundle contradicts itself.
        GpuMissing: a GPU is asked for and cannot be used.
        MissingExtra: the form's library is not installed.
        SealError: a sealed servable cannot be opened.
        Exception: whatever the form's library raises when it loads the servable.
    """
    kind = bundle.manifest.servable.kind
    if kind not in _BACKENDS:
        raise ConfigError(
            f"This server cannot run servables of form {kind!r}",
            hint=f"It runs {', '.join(sorted(_BACKENDS))}",
        )
    check_device(kind, settings)
    with in_the_clear(bundle, settings.seal_key) as readable:
        model: Model = importlib.import_module(_BACKENDS[kind]).load(readable, settings)
    return model
