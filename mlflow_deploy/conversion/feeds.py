"""The inputs of a servable's graph made from rows, and the answer made from its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.bundle import Feed, Output, Servable

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]


def build_feeds(feeds: Sequence[Feed], rows: pd.DataFrame) -> dict[str, Array]:
    """The graph's inputs for some rows.

    Args:
        rows: the signature's columns; for a tensor model columns 0, 1, 2...; an optional column may be absent
            and counts as missing.

    Returns:
        Arrays by input name: [rows, columns] for columns, the feed's shape for a tensor.
    """
    # A number too large for 32 bits becomes infinite, as it does in the server.
    with np.errstate(over="ignore", invalid="ignore"):
        return {feed.name: _feed(feed, rows) for feed in feeds}


def _feed(feed: Feed, rows: pd.DataFrame) -> Array:
    columns = rows if feed.tensor is not None else rows.reindex(columns=list(feed.columns))
    values = _text(columns, feed) if feed.dtype == "str" else _numbers(columns, feed)
    return values.reshape(feed.shape) if feed.tensor is not None else values


def _text(columns: pd.DataFrame, feed: Feed) -> Array:
    values = columns.to_numpy(dtype=object)
    missing = columns.isna().to_numpy()
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


def read_answer(servable: Servable, outputs: Sequence[Array]) -> Array:
    """The answer of a servable whose `answer` is `array`, in the dtype that the native model gives.

    Args:
        outputs: the graph's outputs in the order of `servable.outputs`.
    """
    (output,) = servable.outputs
    return _cast(outputs[0], output)


def _cast(values: Array, output: Output) -> Array:
    if output.squeeze and values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    return values.astype(object if output.dtype == "str" else output.dtype, copy=False)
