"""Turns the graph's outputs into answers: MLflow's JSON, or named tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from mlflow_deploy.bundle import Output, Servable
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.values import Array

Form = Literal["array", "columns", "dict"]
_encode = msgspec.json.Encoder().encode


class Answers:
    """Makes answers from the outputs of one graph.

    Raises:
        ConfigError: the servable names no outputs, or several for an `array` answer.
    """

    def __init__(self, servable: Servable) -> None:
        self.outputs: tuple[Output, ...] = servable.outputs
        self.form: Form = servable.answer
        if not self.outputs or (self.form == "array" and len(self.outputs) != 1):
            raise ConfigError(
                f"The bundle names {len(self.outputs)} outputs for a {self.form!r} answer",
                hint="Deploy the model version again to build its bundle anew",
            )
        self._casts = [
            (None if output.dtype == "str" else np.dtype(output.dtype), output.squeeze)
            for output in self.outputs
        ]
        # The type of the only output, when it can be answered as it is.
        dtype, squeeze = self._casts[0]
        self._plain = dtype if len(self._casts) == 1 and not squeeze else None
        self.names = [output.column or output.name for output in self.outputs]
        if self.form == "array":
            self.names = ["predictions"]

    def finish(self, raw: Sequence[Any]) -> list[Array]:
        """The outputs in the native model's types and shapes."""
        plain = self._plain
        if plain is not None and isinstance(raw[0], np.ndarray):
            dtype = raw[0].dtype
            if dtype is plain or dtype == plain:
                return raw if isinstance(raw, list) else list(raw)
        finished = []
        for (dtype, squeeze), value in zip(self._casts, raw, strict=True):
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            if squeeze and array.ndim > 1 and array.shape[-1] == 1:
                array = array[..., 0]
            finished.append(array if dtype is None or array.dtype == dtype else array.astype(dtype))
        return finished

    def to_json(self, arrays: Sequence[Array]) -> bytes:
        """The body of MLflow's answer: {"predictions": ...}."""
        if self.form == "array":
            return encode_predictions(arrays[0].tolist())
        lists = [array.tolist() for array in arrays]
        if self.form == "dict":
            return encode_predictions(dict(zip(self.names, lists, strict=True)))
        return encode_predictions(
            [dict(zip(self.names, row, strict=True)) for row in zip(*lists, strict=True)]
        )

    def to_tensors(self, arrays: Sequence[Array]) -> list[tuple[str, Array]]:
        """The answer as named tensors, in order."""
        return list(zip(self.names, arrays, strict=True))


def encode_predictions(predictions: Any) -> bytes:
    """{"predictions": ...} as JSON; NaN and Infinity are written so, as MLflow's server does."""
    encoded = _encode(predictions)
    # `in` would first try the bytes as a number, and word the error that it then forgets.
    if encoded.find(b"null") >= 0:
        # msgspec writes NaN as null; json writes what MLflow writes.
        encoded = json.dumps(predictions).encode()
    return b'{"predictions":' + encoded + b"}"
