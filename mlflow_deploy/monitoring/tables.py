"""Rows from pandas, Arrow or Parquet, read one column and one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, Union, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Data: TypeAlias = Union["pd.DataFrame", pa.Table, "Table", str, Path]
Kind: TypeAlias = Literal["numeric", "categorical", "empty", "unsupported"]

BATCH_ROWS = 131_072


@runtime_checkable
class Table(Protocol):
    """Columns by name. `column` yields arrays that together hold `rows` values; their types may differ."""

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def column(self, name: str) -> Iterator[pa.Array]:
        """The values of a column in batches."""


def open_table(data: Data) -> Table:
    """Make `data` readable by column.

    Args:
        data: a pandas DataFrame, a pyarrow Table, or the path of a Parquet file or of a folder of them.

    Raises:
        DataError: the type is another one, a file cannot be read, or two columns have the same name.
    """
    table: Table
    if isinstance(data, str | Path):
        table = _ParquetTable(Path(data))
    elif isinstance(data, pa.Table):
        table = _ArrowTable(data)
    elif isinstance(data, Table):
        table = data
    elif type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        table = _PandasTable(data)
    else:
        raise DataError(
            f"Rows cannot be read from {type(data).__name__}",
            hint="Give a pandas DataFrame, a pyarrow Table or the path of a Parquet file",
        )
    repeated = sorted({name for name in table.names if table.names.count(name) > 1})
    if repeated:
        raise DataError(f"Several columns have the same name: {', '.join(repeated)}", hint="Rename them")
    return table


def kind_of(type_: pa.DataType) -> Kind:
    """How values of an Arrow type are compared; `empty` is the type of a column without any value."""
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if any(
        test(type_)
        for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    ):
        return "numeric"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "categorical"
    return "empty" if pa.types.is_null(type_) else "unsupported"


def values_table(name: str, values: Any, rows: int) -> Table:
    """A table of one column made of a one-dimensional array, Series or sequence.

    Raises:
        DataError: the values are not one-dimensional or not as many as `rows`.
    """
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DataError(
            f"{name}s must be one-dimensional, not of shape {shape}", hint="Give one value per row"
        )
    try:
        array = pa.chunked_array([pa.array(values, from_pandas=True)])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise DataError(f"{name}s cannot be read", why=str(error)) from error
    if len(array) != rows:
        raise DataError(f"There are {len(array)} {name}s for {rows} rows")
    return _ArrowTable(pa.table({name: array}))


class _ArrowTable:
    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.names = tuple(str(name) for name in table.column_names)
        self.rows = int(table.num_rows)

    def column(self, name: str) -> Iterator[pa.Array]:
        for chunk in self._table.column(name).chunks:
            for start in range(0, len(chunk), BATCH_ROWS):
                yield chunk.slice(start, BATCH_ROWS)


class _PandasTable:
    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.names = tuple(str(name) for name in frame.columns)
        self.rows = len(frame)

    def column(self, name: str) -> Iterator[pa.Array]:
        series = self._frame.iloc[:, self.names.index(name)]
        for start in range(0, self.rows, BATCH_ROWS):
            part = series.iloc[start : start + BATCH_ROWS]
            try:
                yield pa.array(part, from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                # Numbers and text in one column: as text they are counted, and reported as a changed type.
                yield pa.array([None if missing else str(value) for value, missing in
                                zip(part, part.isna(), strict=True)], pa.string())  # fmt: skip


class _ParquetTable:
    def __init__(self, path: Path) -> None:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"There is no Parquet file in {path}", hint="Give a file or a folder of *.parquet"
            )
        self._files: Sequence[pq.ParquetFile] = [_open_parquet(file) for file in files]
        schemas = [file.schema_arrow for file in self._files]
        # Files of one folder may differ; a column that a file lacks is missing in its rows.
        self.names = tuple(dict.fromkeys(name for schema in schemas for name in _unique_names(schema)))
        self.rows = sum(int(file.metadata.num_rows) for file in self._files)

    def column(self, name: str) -> Iterator[pa.Array]:
        for file in self._files:
            if name not in file.schema_arrow.names:
                yield pa.nulls(file.metadata.num_rows)
                continue
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[name]):
                yield batch.column(0)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as Parquet", why=str(error), hint="Check the path and that it was closed"
        ) from error


def _unique_names(schema: pa.Schema) -> list[str]:
    names = list(schema.names)
    if len(set(names)) != len(names):
        raise DataError("A Parquet file has several columns with the same name", hint="Rename them")
    return names
