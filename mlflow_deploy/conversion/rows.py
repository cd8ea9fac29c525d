"""Rows of any model: a DataFrame of columns, or one array per tensor with the rows in the first dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.report import plain

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.native import Tensor

    Rows: TypeAlias = pd.DataFrame | Mapping[str, Array]

SHOWN = 64
"""How many numbers of one tensor a report shows."""


def count(rows: Rows) -> int:
    """How many rows there are."""
    return len(next(iter(rows.values()), ())) if isinstance(rows, Mapping) else len(rows)


def take(rows: Rows, index: Sequence[int]) -> Rows:
    """The rows at these positions, numbered anew."""
    if isinstance(rows, Mapping):
        return {name: array[np.asarray(index, dtype=int)] for name, array in rows.items()}
    return rows.iloc[list(index)].reset_index(drop=True)


def values(rows: Rows, row: int) -> dict[str, Any]:
    """One row as JSON; of a large tensor only the first numbers."""
    if not isinstance(rows, Mapping):
        return {str(name): plain(value) for name, value in rows.iloc[row].items()}
    shown = {}
    for name, array in rows.items():
        flat = array[row].ravel()
        cells = plain(flat[:SHOWN])
        shown[name or "inputs"] = (
            cells if flat.size <= SHOWN else [*cells, f"... {flat.size - SHOWN} more numbers"]
        )
    return shown


def tensors_from(data: Any, tensors: Sequence[Tensor]) -> dict[str, Array]:
    """Tensors in the signature's types and shapes.

    Args:
        data: an array for a model of one tensor; a mapping from tensor name to array; or a DataFrame whose
            columns are the tensors, or the numbers of the only tensor.

    Raises:
        ValueError: a tensor is missing or does not fit the signature.
    """
    if isinstance(data, np.ndarray):
        if len(tensors) != 1:
            raise ValueError(f"the model takes {len(tensors)} tensors, one array was given")
        return {tensors[0].name: fit(data, tensors[0])}
    missing = [tensor.name for tensor in tensors if tensor.name not in data]
    if not missing:
        return {tensor.name: fit(_stacked(data[tensor.name]), tensor) for tensor in tensors}
    if isinstance(data, Mapping) or len(tensors) != 1:
        raise ValueError(f"tensor {missing[0]!r} of the model's signature is missing")
    table = cast(Any, data).to_numpy()
    if table.dtype == object and table.shape[1] == 1 and len(table) and np.ndim(table[0, 0]):
        table = _stacked(table[:, 0])
    return {tensors[0].name: fit(table, tensors[0])}


def _stacked(values: Any) -> Array:
    """A column of lists as one array."""
    array = np.asarray(values)
    if array.dtype == object and array.ndim == 1 and len(array) and np.ndim(array[0]):
        array = np.stack([np.asarray(value) for value in array])
    return array


def fit(array: Array, tensor: Tensor) -> Array:
    """An array in the tensor's type and shape; flat rows are folded.

    Raises:
        ValueError: it has another number of values per row.
    """
    inner = tensor.shape[1:]
    if array.shape[1:] != inner and -1 not in inner:
        if array.ndim == 0 or array[:1].size != int(np.prod(inner, dtype=int)) * len(array[:1]):
            size = array[:1].size
            raise ValueError(
                f"the rows have {size} columns, the model takes {int(np.prod(inner, dtype=int))}"
            )
        array = array.reshape((len(array), *inner))
    if array.ndim != len(tensor.shape):
        raise ValueError(f"the rows have shape {list(array.shape)}, the model takes {list(tensor.shape)}")
    return array.astype(object if tensor.dtype == "str" else tensor.dtype, copy=False)
