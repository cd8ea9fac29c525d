"""Makes the graph's inputs from rows and columns: the model's signature compiled once, at load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Feed
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.errors import InvalidValue, TooLarge
from mlflow_deploy.serving.rows import RowPacker
from mlflow_deploy.serving.signature import NUMPY_TYPES, Column, Signature
from mlflow_deploy.serving.tensor_feeds import Feeds, TensorFeeds
from mlflow_deploy.serving.values import (
    Array,
    check_numbers,
    column_array,
    fill_number,
    fill_text,
)

_FLOATS = ("float32", "float64")
_REMEMBERED_ORDERS = 256


class FrameFeeds:
    """Feeds made from DataFrame columns.

    Args:
        feeds: the graph's inputs; each names the columns it is stacked from.
        columns: the columns of the signature; empty when the model has none, then all are required doubles.
        max_rows: more rows in one request are refused.
    """

    def __init__(self, feeds: Sequence[Feed], columns: Sequence[Column], max_rows: int) -> None:
        self.feeds = tuple(feeds)
        self.columns = tuple(columns) or _undeclared(feeds)
        self.names = [
            column.name if column.name is not None else index for index, column in enumerate(self.columns)
        ]
        self.max_rows = max_rows
        self._known = dict(zip(self.names, self.columns, strict=True))
        self._orders: dict[tuple[Any, ...], list[int]] = {}
        self._check_feeds()
        self.common = self._common_dtype()
        self.finite = any(feed.accepts == "finite" for feed in self.feeds)
        self._checked = any(feed.accepts != "all" for feed in self.feeds)
        self._places = [self._place(feed) for feed in self.feeds]
        self._whole = self._whole_feed()

    def _check_feeds(self) -> None:
        for feed in self.feeds:
            for name in feed.columns:
                column = self._known.get(name)
                if column is None or column.type not in NUMPY_TYPES or column.type in ("binary", "datetime"):
                    raise ConfigError(
                        f"The graph input {feed.name!r} needs column {name!r}",
                        why="the signature does not have it in a type that a graph can take",
                        hint="Deploy the model with format=pyfunc",
                    )

    def _common_dtype(self) -> str | None:
        """The numpy type that all columns share when whole rows can be cast in one step, else None."""
        dtypes = {NUMPY_TYPES.get(column.type) for column in self.columns}
        plain = all(feed.missing is None and feed.dtype != "str" for feed in self.feeds)
        dtype = dtypes.pop() if len(dtypes) == 1 and plain else None
        # Optional columns may be absent, which only float columns can show as NaN.
        if dtype in _FLOATS or (dtype in ("int32", "int64") and all(c.required for c in self.columns)):
            return dtype
        return None

    def packer(self) -> RowPacker | None:
        """Packs single rows in the signature's order, when they are the whole input of the graph."""
        if self._whole is None:
            return None
        name, dtype = self._whole
        return RowPacker(name, dtype.name, len(self.names))

    def _place(self, feed: Feed) -> slice | list[int]:
        """Where the feed's columns are among the signature's: a slice needs no copy."""
        positions = [self.names.index(name) for name in feed.columns]
        start = positions[0]
        if positions == list(range(start, start + len(positions))):
            return slice(start, start + len(positions))
        return positions

    def _whole_feed(self) -> tuple[str, np.dtype[Any]] | None:
        """Name and type of the only graph input when the rows can be cast to it directly, else None."""
        if self.common in _FLOATS and self._places == [slice(0, len(self.names))]:
            feed = self.feeds[0]
            # From a float32 column to a wider input the values must still be rounded on the way.
            if feed.dtype == self.common or (feed.dtype, self.common) == _FLOATS:
                return feed.name, np.dtype(feed.dtype)
        return None

    # --- rows in the caller's column order -----------------------------------------------------------------

    def from_rows(
        self, columns: list[Any] | None, rows: Sequence[Sequence[Any]], *, trusted: bool = False
    ) -> tuple[Feeds, int]:
        """Feeds from rows of values, whose columns stand in the caller's order; None means no names.

        Args:
            trusted: the values are known to be numbers that the model takes.

        Raises:
            InvalidValue: a column is missing, or a value does not fit its type.
        """
        if (
            self._whole is not None
            and (columns is self.names or columns == self.names)
            and 0 < len(rows) <= self.max_rows
        ):
            name, dtype = self._whole
            try:
                matrix = np.array(rows, dtype)
            except (ValueError, TypeError, OverflowError):
                return self._from_any_rows(columns, rows)
            if matrix.ndim == 2 and matrix.shape[1] == len(columns):
                return ({name: matrix} if trusted else self._checked_feeds({name: matrix})), len(rows)
        return self._from_any_rows(columns, rows)

    def _from_any_rows(self, columns: list[Any] | None, rows: Sequence[Sequence[Any]]) -> tuple[Feeds, int]:
        count = self._count(len(rows))
        if columns is None:
            columns = list(range(max(map(len, rows))))
        rows = _even(rows, len(columns))
        order = list(range(len(columns))) if columns == self.names else self._order(columns)
        if self.common is not None:
            if columns != self.names:
                rows = [[row[at] if at >= 0 else None for at in order] for row in rows]
            return self._checked_feeds(self._split(self._matrix(rows, np.dtype(self.common)))), count
        by_column = list(zip(*rows, strict=True))
        return self._stack([by_column[at] if at >= 0 else None for at in order], count), count

    def _checked_feeds(self, feeds: Feeds) -> Feeds:
        """The feeds, when the native model would take their numbers."""
        if self._checked:
            for feed in self.feeds:
                check_numbers(feeds[feed.name], feed.accepts)
        return feeds

    def _count(self, count: int) -> int:
        if count == 0:
            raise InvalidValue("The request has no rows")
        if count > self.max_rows:
            raise TooLarge(f"The request has {count} rows, more than the {self.max_rows} that are allowed")
        return count

    def _order(self, columns: list[Any]) -> list[int]:
        """For each column of the signature its position in the request, -1 for an absent optional one."""
        try:
            key = tuple(columns)
            known = self._orders.get(key)
        except TypeError as error:
            raise InvalidValue("Column names must be text or numbers") from error
        if known is not None:
            return known
        if len(set(key)) != len(key):
            raise InvalidValue("A column is named twice")
        positions = {name: at for at, name in enumerate(key)}
        if self.columns[0].name is None:
            if len(key) < len(self.columns):
                raise InvalidValue(f"The model takes {len(self.columns)} columns, the request has {len(key)}")
            return list(range(len(self.columns)))
        self._require(positions)
        order = [positions.get(name, -1) for name in self.names]
        if len(self._orders) < _REMEMBERED_ORDERS:
            self._orders[key] = order
        return order

    def _require(self, present: Iterable[Any]) -> None:
        missing = [c.name for c in self.columns if c.required and c.name not in present]
        if missing:
            raise InvalidValue(f"Model is missing inputs {missing}", hint="Send all columns of the signature")

    def _matrix(self, rows: Sequence[Sequence[Any]], dtype: np.dtype[Any]) -> Array:
        """All rows as one array of shape [rows, columns of the signature]."""
        try:
            matrix = np.array(rows, dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidValue(
                f"The rows need values of type {self.common}, and as many as columns"
            ) from error
        if matrix.ndim != 2:
            raise InvalidValue(f"The rows need one value of type {self.common} per column")
        return matrix

    def _split(self, matrix: Array) -> Feeds:
        """The matrix cut into the graph's inputs."""
        return {
            feed.name: matrix[:, place].astype(feed.dtype, copy=False)
            for feed, place in zip(self.feeds, self._places, strict=True)
        }

    # --- columns -------------------------------------------------------------------------------------------

    def from_records(self, records: Sequence[Any]) -> tuple[Feeds, int]:
        """Feeds from one mapping per row; a column that some rows lack is missing there."""
        self._count(len(records))
        if not all(isinstance(record, dict) for record in records):
            raise InvalidValue("Every record must be an object that maps column names to values")
        if self.columns[0].name is None:
            columns = list(dict.fromkeys(name for record in records for name in record))
            return self.from_rows(columns, [[record.get(name) for name in columns] for record in records])
        present = records[0].keys() if len(records) == 1 else {name for record in records for name in record}
        self._require(present)
        names = [name for name in self.names if name in present]
        return self.from_rows(names, [[record.get(name) for name in names] for record in records])

    def from_columns(self, columns: Mapping[Any, Any]) -> tuple[Feeds, int]:
        """Feeds from a mapping of column name to its values; single values make a single row."""
        wanted = {name: columns[name] for name in self.names if name in columns}
        self._require(wanted)
        lists = {
            name: value for name, value in wanted.items() if isinstance(value, (list, tuple, np.ndarray))
        }
        lengths = {len(value) for value in lists.values()}
        if len(lengths) > 1:
            raise InvalidValue("The columns differ in length")
        count = self._count(lengths.pop() if lengths else 1)
        values = [
            None if name not in wanted else lists[name] if name in lists else [wanted[name]] * count
            for name in self.names
        ]
        return self._stack(values, count), count

    def _stack(self, values: Sequence[Any], count: int) -> Feeds:
        """Feeds from the signature's columns in order, None for an absent one."""
        arrays: dict[Any, Array | None] = {}
        for name, column, given in zip(self.names, self.columns, values, strict=True):
            if given is None:
                arrays[name] = None
            elif isinstance(given, np.ndarray) and column.type not in ("string", "boolean"):
                arrays[name] = given
            else:
                arrays[name] = column_array(name, given, column.type)
        return self._checked_feeds(
            {
                feed.name: _assemble(feed, [arrays[name] for name in feed.columns], count)
                for feed in self.feeds
            }
        )


def _even(rows: Sequence[Any], width: int) -> Sequence[Sequence[Any]]:
    """The rows, shorter ones filled up with missing values, as a DataFrame does."""
    try:
        lengths = set(map(len, rows))
    except TypeError as error:
        raise InvalidValue("Every row must be a list of values") from error
    if lengths == {width}:
        return rows
    if max(lengths) != width:
        raise InvalidValue(f"{width} columns were named, but the rows have {max(lengths)} values")
    return [[*row, *[None] * (width - len(row))] for row in rows]


def _assemble(feed: Feed, columns: Sequence[Array | None], count: int) -> Array:
    """One graph input of shape [rows, columns]; None stands for a column that the request left out."""
    if feed.dtype == "str":
        missing = "nan" if feed.missing is None else str(feed.missing)
        out = np.empty((count, len(columns)), object)
        for at, column in enumerate(columns):
            out[:, at] = (
                missing if column is None else fill_text(column, missing, strict=feed.accepts == "finite")
            )
        return out
    out = np.empty((count, len(columns)), feed.dtype)
    for at, column in enumerate(columns):
        if column is None:
            if feed.missing is None and out.dtype.kind != "f":
                raise InvalidValue(f"Column {feed.columns[at]!r} cannot be left out of this request")
            out[:, at] = np.nan if feed.missing is None else feed.missing
        else:
            out[:, at] = column if feed.missing is None else fill_number(column, float(feed.missing))
    return out


def _undeclared(feeds: Sequence[Feed]) -> tuple[Column, ...]:
    names = dict.fromkeys(name for feed in feeds for name in feed.columns)
    return tuple(Column(name, "double") for name in names)


def make_feeds(feeds: Sequence[Feed], signature: Signature | None, max_rows: int) -> FrameFeeds | TensorFeeds:
    """The plan that fits the feeds of a servable.

    Raises:
        ConfigError: the feeds do not fit the signature.
    """
    if not feeds:
        raise ConfigError("The bundle does not say how the graph's inputs are made")
    if all(feed.columns for feed in feeds):
        return FrameFeeds(feeds, signature.columns if signature else (), max_rows)
    if any(feed.columns for feed in feeds):
        raise ConfigError("The bundle mixes graph inputs made from columns with some made from tensors")
    return TensorFeeds(feeds, signature, max_rows)
