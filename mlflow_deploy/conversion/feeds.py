"""The inputs of a servable's graph made from rows, and the answer made from its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.bundle import Feed, Output, Servable

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.answers import Answer
    from mlflow_deploy.conversion.rows import Rows

Array = np.ndarray[Any, Any]


def build_feeds(feeds: Sequence[Feed], rows: Rows) -> dict[str, Array]:
    """The graph's inputs for some rows.

    Args:
        rows: the signature's columns, of which an optional one may be absent and counts as missing; or for a
            model of tensors an array for each.

    Returns:
        Arrays by input name: [rows, columns] for columns, the feed's shape for a tensor.
    """
    # A number too large for 32 bits becomes infinite, as it does in the server.
    with np.errstate(over="ignore", invalid="ignore"):
        return {feed.name: _feed(feed, rows) for feed in feeds}


def _feed(feed: Feed, rows: Rows) -> Array:
    if isinstance(rows, Mapping):
        return _tensor(rows[feed.tensor or ""], feed)
    columns = rows.reindex(columns=list(feed.columns))
    if feed.dtype == "str":
        return _text(columns.to_numpy(dtype=object), columns.isna().to_numpy(), feed)
    return _numbers(columns, feed)


def _tensor(array: Array, feed: Feed) -> Array:
    if feed.dtype == "str":
        missing = np.asarray(
            [value is None or value != value for value in array.ravel()], dtype=bool
        ).reshape(array.shape)
        array = _text(array, missing, feed)
    else:
        array = array.astype(feed.dtype, copy=False)
    return array if len(feed.shape) == array.ndim else array.reshape(feed.shape)


def _text(values: Array, missing: Array, feed: Feed) -> Array:
    out = np.empty(values.shape, dtype=object)
    for index, value in np.ndenumerate(values):
        out[index] = str(feed.missing) if missing[index] else str(value)
    return out


def _numbers(columns: pd.DataFrame, feed: Feed) -> Array:
    dtype = np.dtype(feed.dtype)
    missing = columns.isna().to_numpy()
    if not missing.any():
        # Straight to the target type: a detour over float64 would round integers beyond 2**53.
        return np.stack([columns.iloc[:, i].to_numpy(dtype=dtype) for i in range(columns.shape[1])], axis=1)
    if feed.missing is None and dtype.kind != "f":
        raise ValueError(f"input {feed.name!r} has missing values, which type {feed.dtype} cannot hold")
    fill: Any = np.nan if feed.missing is None else feed.missing
    return columns.to_numpy(dtype=np.float64, na_value=fill).astype(dtype)


def read_answer(servable: Servable, outputs: Sequence[Array]) -> Answer:
    """The answer of a servable in the types that the native model gives.

    Args:
        outputs: the graph's outputs in the order of `servable.outputs`.
    """
    from mlflow_deploy.conversion.answers import Answer

    arrays = [_cast(values, output) for values, output in zip(outputs, servable.outputs, strict=True)]
    if servable.answer == "array":
        (array,) = arrays
        return Answer("array", {"": array})
    names = [output.column or output.name for output in servable.outputs]
    return Answer(servable.answer, dict(zip(names, arrays, strict=True)))


def _cast(values: Array, output: Output) -> Array:
    values = np.asarray(values)
    if output.squeeze and values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    return values.astype(object if output.dtype == "str" else output.dtype, copy=False)
