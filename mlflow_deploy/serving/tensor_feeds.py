"""Makes the graph's inputs from tensors by name: the model's signature compiled once, at load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Feed
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.errors import InvalidValue, TooLarge
from mlflow_deploy.serving.rows import RowPacker
from mlflow_deploy.serving.signature import Signature, Tensor
from mlflow_deploy.serving.values import Array, check_numbers, check_shape, tensor_array

Feeds = dict[str, Array]
_FLOATS = ("float32", "float64")


class TensorFeeds:
    """Feeds made from tensors by name.

    Args:
        feeds: the graph's inputs; each names the tensor it takes.
        signature: the model's signature; without tensors in it, the feeds' own types and shapes are asked for.
        max_rows: a longer first dimension is refused.
    """

    def __init__(self, feeds: Sequence[Feed], signature: Signature | None, max_rows: int) -> None:
        self.feeds = tuple(feeds)
        declared = signature.tensors if signature else ()
        self.tensors = declared or tuple(Tensor(f.tensor or "", f.dtype, f.shape) for f in feeds)
        self.max_rows = max_rows
        self._plan = [
            (feed, feed.tensor or "", np.dtype(object if feed.dtype == "str" else feed.dtype))
            for feed in feeds
        ]
        self._direct = self._direct_feed()
        known = {tensor.name for tensor in self.tensors}
        for feed in self.feeds:
            if (feed.tensor or "") not in known:
                raise ConfigError(
                    f"The graph input {feed.name!r} needs tensor {feed.tensor!r}",
                    why="the signature does not have it",
                    hint="Deploy the model version again to build its bundle anew",
                )

    def _direct_feed(self) -> tuple[str, np.dtype[Any], tuple[int, ...]] | None:
        """Name, type and row shape of the only graph input when lists can be cast to it directly, else None."""
        if len(self.feeds) != 1 or len(self.tensors) != 1:
            return None
        feed, tensor = self.feeds[0], self.tensors[0]
        free_rows = tensor.shape[:1] == (-1,) and -1 not in tensor.shape[1:]
        # From a float32 tensor to a wider input the values must still be rounded on the way.
        if free_rows and (feed.dtype == tensor.dtype or (feed.dtype, tensor.dtype) == _FLOATS):
            return feed.name, np.dtype(feed.dtype), tensor.shape[1:]
        return None

    def packer(self) -> RowPacker | None:
        """Packs tensors of a single row, when these are the whole input of the graph."""
        if self._direct is None or len(self._direct[2]) != 1:
            return None
        name, dtype, (columns,) = self._direct
        return RowPacker(name, dtype.name, columns) if dtype.name in _FLOATS else None

    @property
    def single(self) -> Tensor | None:
        """The tensor, when the model takes one only."""
        return self.tensors[0] if len(self.tensors) == 1 else None

    def from_numbers(self, value: Any) -> tuple[Feeds, int]:
        """Feeds from nested lists of numbers that the model is known to take; errors as in `from_value`."""
        if self._direct is not None:
            name, dtype, shape = self._direct
            try:
                array = np.array(value, dtype)
            except (ValueError, TypeError, OverflowError):
                return self.from_value(value)
            if array.shape[1:] == shape and 0 < len(array) <= self.max_rows:
                return {name: array}, len(array)
        return self.from_value(value)

    def from_value(self, value: Any) -> tuple[Feeds, int]:
        """Feeds from nested lists: of the one tensor, or a mapping of tensor name to its lists.

        Raises:
            InvalidValue: a tensor is missing, or has another shape or type.
        """
        single = self.single
        if single is not None and not isinstance(value, dict):
            return self.from_arrays({single.name: tensor_array(value, single)})
        if not isinstance(value, dict):
            raise InvalidValue("The model takes several tensors: send an object with one entry for each")
        self._require(value)
        return self.from_arrays({t.name: tensor_array(value[t.name], t) for t in self.tensors})

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> tuple[Feeds, int]:
        """Feeds from one mapping of tensor name to value per row."""
        columns: dict[str, list[Any]] = {tensor.name: [] for tensor in self.tensors}
        for record in records:
            self._require(record)
            for name, values in columns.items():
                values.append(record[name])
        return self.from_value(columns)

    def from_rows(self, columns: list[Any] | None, rows: Sequence[Sequence[Any]]) -> tuple[Feeds, int]:
        """Feeds from a table: number columns make the unnamed tensor, a column of lists makes its own."""
        if not rows:
            raise InvalidValue("The request has no rows")
        single = self.single
        if single is not None and not single.name:
            nested = all(len(row) == 1 and isinstance(row[0], list) for row in rows)
            value = [row[0] for row in rows] if nested else rows
            if len(single.shape) != 2:
                value = [row[0] if len(row) == 1 else row for row in rows]
            return self.from_arrays({"": _reshaped(value, single, len(rows))})
        names = columns if columns is not None else list(range(len(rows[0])))
        try:
            positions = {name: at for at, name in enumerate(names)}
        except TypeError as error:
            raise InvalidValue("Column names must be text or numbers") from error
        self._require(positions)
        if any(len(row) != len(names) for row in rows):
            raise InvalidValue(f"{len(names)} columns were named, but a row has another number of values")
        arrays = {}
        for tensor in self.tensors:
            at = positions[tensor.name]
            arrays[tensor.name] = _reshaped([row[at] for row in rows], tensor, len(rows))
        return self.from_arrays(arrays)

    def from_arrays(self, arrays: Mapping[str, Array]) -> tuple[Feeds, int]:
        """Feeds from arrays that already have the tensors' types."""
        for tensor in self.tensors:
            check_shape(arrays[tensor.name], tensor)
        feeds = {}
        count = 1
        for feed, tensor_name, dtype in self._plan:
            array = arrays[tensor_name]
            if array.ndim:
                count = array.shape[0]
            if feed.accepts != "all":
                check_numbers(array, feed.accepts)
            feeds[feed.name] = array if array.dtype == dtype else array.astype(dtype)
        if count == 0:
            raise InvalidValue("The request has no rows")
        if count > self.max_rows:
            raise TooLarge(f"The request has {count} rows, more than the {self.max_rows} that are allowed")
        return feeds, count

    def _require(self, present: Iterable[Any]) -> None:
        missing = [tensor.name for tensor in self.tensors if tensor.name not in present]
        if missing:
            raise InvalidValue(f"Model is missing inputs {missing}", hint="Send all tensors of the signature")


def _reshaped(values: Any, tensor: Tensor, count: int) -> Array:
    """Table values in the tensor's shape: flat lists are folded, as MLflow does with DataFrame columns."""
    dtype = object if tensor.dtype in ("str", "object") else tensor.dtype
    try:
        array = np.array(values, dtype)
        if array.shape[1:] != tensor.shape[1:]:
            array = array.reshape((count, *tensor.shape[1:]))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidValue(
            f"A row does not make a tensor of type {tensor.dtype} and shape {list(tensor.shape)}"
        ) from error
    return array
