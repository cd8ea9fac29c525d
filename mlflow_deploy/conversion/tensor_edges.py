"""Edge rows of tensors: some of their numbers become columns of a table, are varied there, and are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.native import Column, NativeModel, Tensor
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    import pandas as pd

VARIED = 64
"""How many numbers of a row are varied, over all tensors; the others keep their values."""

BATCH = 4096
LARGEST = 2**24
"""How many numbers the large batch holds at most."""

INSIDE = 64
"""Rows with whole numbers drawn from between the seen ones."""

INSIDE_RANGE = "whole numbers inside the seen range"
OUTSIDE_RANGE = "whole numbers outside the seen range"
"""Rows that a servable must refuse where the native model does: a runtime may count an index from the end."""

SOURCE = "row"
"""Column of the table that says which row each varied row came from."""

_TYPES = {"float16": "float", "float32": "float", "float64": "double", "int32": "integer", "int64": "long"}

_FREE = 16
"""The size of a free dimension where no example shows one."""


@dataclass(frozen=True)
class Table:
    """The varied numbers of tensors as columns.

    Attributes:
        base: the rows they were taken from.
        columns: their names are pairs of tensor name and position in the flat tensor.
        frame: one row per row of `base`, and the column `row`.
    """

    base: Mapping[str, Array]
    columns: tuple[Column, ...]
    frame: pd.DataFrame

    def rows(self, frame: pd.DataFrame) -> dict[str, Array]:
        """Tensors from rows of the table that were varied."""
        source = frame[SOURCE].to_numpy(dtype=int)
        tensors = {name: array[source].copy() for name, array in self.base.items()}
        for column in self.columns:
            name, position = _place(column)
            flat = tensors[name].reshape(len(source), -1)
            values = frame[column.name].to_numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                flat[:, position] = values if flat.dtype == object else values.astype(flat.dtype)
            tensors[name] = flat.reshape(tensors[name].shape)
        return tensors


def tabulate(native: NativeModel, base: Mapping[str, Array], varied: int = VARIED) -> Table:
    """The table of the numbers that are varied: the first ones of small tensors, of large ones a sample."""
    import pandas as pd

    rng = np.random.default_rng(len(native.tensors))
    share = max(1, varied // len(native.tensors))
    columns: list[Column] = []
    data: dict[Any, Any] = {SOURCE: np.arange(count(base))}
    for tensor in native.tensors:
        kind = "string" if tensor.dtype == "str" else _TYPES.get(tensor.dtype, "other")
        flat = base[tensor.name].reshape(count(base), -1)
        size = flat.shape[1]
        chosen = range(size) if size <= share else sorted(rng.choice(size, share, replace=False).tolist())
        for position in chosen:
            key = (tensor.name, int(position))
            columns.append(Column(name=key, type=kind))  # type: ignore[arg-type]
            data[key] = (
                flat[:, position].astype(np.float32) if tensor.dtype == "float16" else flat[:, position]
            )
    frame = pd.DataFrame(dict(enumerate(data.values())))
    # Set as a plain index: pandas would read pairs as a hierarchy.
    frame.columns = pd.Index(list(data), tupleize_cols=False)
    return Table(base=base, columns=tuple(columns), frame=frame)


def _place(column: Column) -> tuple[str, int]:
    name, position = cast("tuple[str, int]", column.name)
    return name, int(position)


def large_batch(base: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Many rows: half of them real, the others between two real ones; whole numbers stay real."""
    size = sum(array[:1].size for array in base.values()) or 1
    rows = int(np.clip(LARGEST // size, FEWEST, BATCH))
    first, second = rng.integers(0, count(base), rows), rng.integers(0, count(base), rows)
    weight = np.where(rng.random(rows) < 0.5, 0.0, rng.random(rows))
    mixed = {}
    for name, array in base.items():
        start = array[first]
        if array.dtype.kind == "f":
            factor = weight.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
            start = start + factor * (array[second] - start)
        mixed[name] = start
    return mixed


FEWEST = 16
"""Rows of the large batch at least, however large the tensors are."""


def other_sizes(native: NativeModel, base: Mapping[str, Array]) -> Iterator[tuple[str, dict[str, Array]]]:
    """Rows cut to half the size of a free dimension, such as shorter sequences."""
    few = take(base, range(min(FEWEST, count(base))))
    assert isinstance(few, Mapping)
    axes = {
        axis for tensor in native.tensors for axis, size in enumerate(tensor.shape) if axis and size == -1
    }
    for axis in sorted(axes):
        cut = dict(few)
        for tensor in native.tensors:
            if axis < len(tensor.shape) and tensor.shape[axis] == -1:
                half = max(1, few[tensor.name].shape[axis] // 2)
                cut[tensor.name] = np.take(few[tensor.name], range(half), axis=axis)
        yield f"half the size of dimension {axis}", cut


def whole_numbers(
    native: NativeModel, base: Mapping[str, Array], rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Rows whose whole numbers, such as tokens, are any between the seen ones, and rows just beyond."""
    kinds = [tensor.name for tensor in native.tensors if tensor.dtype in ("int32", "int64")]
    kinds = [name for name in kinds if base[name].size]
    if not kinds or native.rows_at_once not in (None, 1):
        return
    source = rng.integers(0, count(base), INSIDE)
    inside = {name: array[source].copy() for name, array in base.items()}
    for name in kinds:
        array = base[name]
        drawn = rng.integers(int(array.min()), int(array.max()) + 1, inside[name].shape)
        inside[name] = drawn.astype(array.dtype)
    yield INSIDE_RANGE, inside
    changes = [
        (name, position, value)
        for name in kinds
        for position in sorted({0, base[name][:1].size - 1})
        for value in _beyond(base[name])
    ]
    if not changes:
        return
    outside = {name: array[np.arange(len(changes)) % count(base)].copy() for name, array in base.items()}
    for row, (name, position, value) in enumerate(changes):
        outside[name][row].reshape(-1)[position] = value
    yield OUTSIDE_RANGE, outside


def _beyond(array: Array) -> list[int]:
    """Whole numbers outside those of an array, as a table of that many rows would not have them."""
    low, high, limits = int(array.min()), int(array.max()), np.iinfo(array.dtype)
    near = {-1, low - 1, -high - 2, high + 1, 2**31 - 1, -(2**31)}
    return sorted(value for value in near if not low <= value <= high and limits.min <= value <= limits.max)


def invent_tensors(
    native: NativeModel, texts: Sequence[str], rng: np.random.Generator, rows: int
) -> dict[str, Array]:
    """Tensors made from the signature alone: noise, small whole numbers, texts."""
    return {tensor.name: _invented(native, tensor, texts, rng, rows) for tensor in native.tensors}


def _invented(
    native: NativeModel, tensor: Tensor, texts: Sequence[str], rng: np.random.Generator, rows: int
) -> Array:
    inner = [size if size > 0 else _FREE for size in tensor.shape[1:]]
    first = rows if not tensor.shape or tensor.shape[0] == -1 else tensor.shape[0]
    shape = (first, *inner)
    if tensor.dtype == "str":
        return rng.choice(np.asarray(texts, dtype=object), shape)
    kind = np.dtype(tensor.dtype)
    if kind.kind in "iub":
        return rng.integers(0, 2, shape).astype(kind)
    values = rng.normal(size=shape) * rng.choice([0.1, 1.0, 10.0, 100.0], (first, *[1] * len(inner)))
    for position, known in native.hints.items():
        if isinstance(position, int) and len(inner) == 1 and position < inner[0]:
            values[:, position] = rng.choice(np.asarray(known, dtype=float), first)
    numbers: Array = values.astype(kind)
    return numbers
