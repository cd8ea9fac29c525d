"""What converters of neural networks share: inputs of the graph, rows to trace, checks of the native model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.bundle import Feed, Output
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.edges import invent
from mlflow_deploy.conversion.feeds import Array, build_feeds
from mlflow_deploy.conversion.native import NUMERIC, NativeModel, example_rows
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows

LARGEST = 1_900_000_000
"""Bytes of weights that fit into one protobuf message, in which ONNX and SavedModel graphs are written."""

_TRACED = 3
"""Rows to trace with: exporters take sizes 0 and 1 for constants."""

_FACTORS = (1.0, 0.5, -1.3)
"""The rows that are traced differ by these factors, also where the example has one row only."""


@dataclass(frozen=True)
class Input:
    """An input of the graph: name, numpy dtype name, shape with -1 for free dimensions, the tensor it takes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    tensor: str | None

    @property
    def feed(self) -> Feed:
        """How the input is made from a request; columns are set by the caller."""
        return Feed(name=self.name, dtype=self.dtype, tensor=self.tensor, shape=self.shape)


def no_hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:  # noqa: ARG001 - every converter has it
    """Nothing: no values are known at which a network changes."""
    return {}


def refuse_signature(native: NativeModel, *, columns: bool) -> str:
    """Why the inputs of a model cannot become inputs of a graph, or the empty string.

    Args:
        columns: the flavor hands columns of numbers to the model, as one matrix.
    """
    if native.tensors:
        for tensor in native.tensors:
            if not tensor.shape or tensor.dtype in ("datetime64", "complex64", "complex128"):
                shape = list(tensor.shape)
                return f"tensor {tensor.name!r} of type {tensor.dtype} and shape {shape} has no graph form"
        return ""
    if not native.columns:
        return "the model has no signature; log it with input_example= or signature="
    if not columns:
        return (
            "its signature has columns, and the model takes tensors; log it with an array as input_example="
        )
    for column in native.columns:
        if column.type not in NUMERIC or not column.required:
            return f"column {column.name!r} is no required number, and the model takes a matrix of numbers"
    return ""


def inputs(native: NativeModel, dtypes: Mapping[str, str] | None = None) -> tuple[Input, ...]:
    """The inputs of the graph: one for each tensor, or one matrix of all columns.

    Args:
        dtypes: by tensor name the type that the graph takes, where it is not that of the signature.
    """
    if not native.tensors:
        return (Input("input", "float32", (-1, len(native.columns)), None),)
    found = []
    for index, tensor in enumerate(native.tensors):
        plain = tensor.name if tensor.name.isascii() and tensor.name.isidentifier() else f"input_{index}"
        dtype = (dtypes or {}).get(tensor.name, tensor.dtype)
        found.append(Input(plain if tensor.name else "input", dtype, tensor.shape, tensor.name))
    return tuple(found)


def feeds(native: NativeModel, graph: tuple[Input, ...]) -> tuple[Feed, ...]:
    """How the inputs of the graph are made from requests."""
    if native.tensors:
        return tuple(item.feed for item in graph)
    columns = tuple(column.name for column in native.columns)
    return tuple(Feed(name=item.name, dtype=item.dtype, columns=columns, shape=item.shape) for item in graph)


def outputs(answer: Answer, names: tuple[str, ...]) -> tuple[Output, ...]:
    """How outputs of these names, in the order of the answer's arrays, become the answer."""
    return tuple(
        Output(name=name, dtype=array.dtype.name, column=key or None)
        for name, (key, array) in zip(names, answer.arrays.items(), strict=True)
    )


def samples(native: NativeModel) -> Rows:
    """Rows that differ from each other, as many as a call takes: of the example, or invented."""
    found: Rows | None = None
    with suppress(ValueError):
        found = example_rows(native)
    if found is None or not count(found):
        found = invent(native)
    size = native.rows_at_once or _TRACED
    rows = take(found, [index % count(found) for index in range(size)])
    if not isinstance(rows, Mapping):
        return rows.apply(lambda column: _scaled(column.to_numpy()))
    return {name: _scaled(array) for name, array in rows.items()}


def _scaled(array: Array) -> Array:
    if array.dtype.kind != "f":
        return array
    factors = np.resize(np.asarray(_FACTORS, dtype=array.dtype), len(array))
    scaled: Array = array * factors.reshape(-1, *[1] * (array.ndim - 1))
    return scaled


def arrays(native: NativeModel, graph: tuple[Input, ...]) -> dict[str, Array]:
    """Arrays to trace the graph with, by input."""
    return build_feeds(feeds(native, graph), samples(native))


# --- checks of the native model ----------------------------------------------------------------------------


def refuse_answers(native: NativeModel) -> str:
    """Why the native model's answers cannot be those of a graph, or the empty string."""
    rows = samples(native)
    try:
        first = native.predict(rows)
    except Exception as error:  # noqa: BLE001 - the model is the user's code; what it refuses becomes the reason
        return _refused(native, rows, error)
    if len(first) != count(rows):
        return "its answer has no row for each row of the input"
    if not _close(first, native.predict(rows)):
        return (
            "the model answers the same rows differently each time, as dropout in training mode does; "
            "call eval() on it before it is logged"
        )
    return ""


def _refused(native: NativeModel, rows: Rows, error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    try:
        native.predict(take(rows, [0]))
    except Exception:  # noqa: BLE001 - refused as one row too: the first error is the one to tell
        return f"it refuses its own input example: {type(error).__name__}: {text}"
    return (
        "it answers one row at a time, because it was logged from an input example of one row, which fixed its "
        "batch dimension; log it with an input_example of two rows or more"
    )


def independent(native: NativeModel) -> bool:
    """Whether a row's answer does not depend on the rows around it, so that requests may share a call.

    A recurrent network whose first dimension is time, or batch normalisation in training mode, mixes them.
    """
    if native.rows_at_once is not None:
        return False
    rows = samples(native)
    together = native.predict(rows)
    return all(
        _close(together.take(np.array([row])), native.predict(take(rows, [row])))
        for row in range(count(rows))
    )


def _close(one: Answer, two: Answer) -> bool:
    return one.arrays.keys() == two.arrays.keys() and all(
        array.shape == two.arrays[name].shape and _same(array, two.arrays[name])
        for name, array in one.arrays.items()
    )


def _same(one: Array, two: Array) -> bool:
    if one.dtype.kind not in "fc":
        return bool((one == two).all())
    return bool(np.allclose(one, two, rtol=1e-3, atol=1e-5, equal_nan=True))


def first_line(error: BaseException) -> str:
    """What an exporter said, without the pages that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
