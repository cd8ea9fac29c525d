"""A single row of numbers on its shortest way: from the JSON document into the graph's memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec
import numpy as np

from mlflow_deploy.serving.values import Array

_CODES = {"float32": "f", "float64": "d"}


class PackedRow(msgspec.Struct, gc=False):
    """One row in the memory layout of the graph's only input.

    Attributes:
        packer: what packed it.
        data: the numbers, in the input's type, one after the other.
        key: the shape of the input, as `backends.bound` finds its buffers by it.
    """

    packer: RowPacker
    data: bytes
    key: tuple[tuple[int, ...], ...]

    def feeds(self) -> dict[str, Array]:
        """The same as an array of shape [1, columns]."""
        packer = self.packer
        return {packer.name: np.frombuffer(self.data, packer.dtype).reshape(packer.key[0])}


class RowPacker:
    """Packs rows for a graph with one input of shape [rows, columns].

    Args:
        name: of the input.
        dtype: `float32` or `float64`.
        columns: how many numbers a row has.
    """

    def __init__(self, name: str, dtype: str, columns: int) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.key = ((1, columns),)
        self._pack = struct.Struct(f"={columns}{_CODES[dtype]}").pack

    def __call__(self, rows: Sequence[Sequence[float | None]]) -> PackedRow | None:
        """The only row, packed; None when there are more, or its length or a value does not fit."""
        if len(rows) != 1:
            return None
        try:
            return PackedRow(self, self._pack(*rows[0]), self.key)
        except (struct.error, OverflowError):
            return None
