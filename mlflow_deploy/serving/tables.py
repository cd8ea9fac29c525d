"""Reads CSV and Parquet into columns and rows without pandas, by pandas' rules for missing values."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from mlflow_deploy.serving.errors import BadRequest, InvalidValue, UnsupportedType

# What pandas.read_csv takes for a missing value.
_MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
     "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip
_TRUTH = {"true": True, "false": False}
_INTEGER = re.compile(r"\s*[-+]?\d+\s*")


def read_csv(text: str, text_columns: set[Any]) -> tuple[list[Any], list[list[Any]]]:
    """Columns and rows of CSV with a header line.

    Args:
        text_columns: columns that stay text; in the others true and false are read as such.

    Raises:
        BadRequest: it is not CSV, or a row has more values than the header.
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise BadRequest("The body is not valid CSV") from error
    if not lines:
        raise BadRequest("The CSV body is empty")
    header, rows = lines[0], lines[1:]
    keep = [name in text_columns for name in header]
    values: list[list[Any]] = []
    for row in rows:
        if len(row) > len(header):
            raise BadRequest("A CSV row has more values than the header")
        cells = row + [""] * (len(header) - len(row))
        values.append([_cell(cell, text) for cell, text in zip(cells, keep, strict=True)])
    return list(header), values


def _cell(cell: str, text: bool) -> Any:
    if cell in _MISSING:
        return None
    if text:
        return cell
    # Numbers stay text, which numpy reads when it casts the column; only integers must not go by way of
    # floats, which would round the large ones.
    if _INTEGER.fullmatch(cell):
        return int(cell)
    return _TRUTH.get(cell.lower(), cell)


# Parquet types that MLflow casts to a column's type; any other pair is refused.
_SAFE = {
    "boolean": ("bool",),
    "integer": ("int8", "int16", "int32", "uint8", "uint16"),
    "long": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    "float": ("float", "halffloat"),
    "double": ("float", "double", "halffloat", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    "string": ("string", "large_string", "string_view"),
}  # fmt: skip


def read_parquet(data: bytes, types: dict[Any, str]) -> tuple[list[Any], list[list[Any]]]:
    """Columns and rows of a Parquet file.

    Args:
        types: MLflow type of each column of the signature; a column of another kind is refused, as MLflow does.

    Raises:
        BadRequest: it is not Parquet.
        InvalidValue: a column has a type that cannot be cast safely.
        UnsupportedType: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UnsupportedType("This server does not read Parquet", hint="Send JSON or CSV") from error
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadRequest("The body is not a readable Parquet file") from error
    names = [name for name in table.column_names if not types or name in types]
    columns = []
    for name in names:
        column = table.column(name)
        _check_type(name, column, types.get(name))
        columns.append(column.to_pylist())
    return names, [list(row) for row in zip(*columns, strict=True)]


def _check_type(name: str, column: Any, wanted: str | None) -> None:
    given = str(column.type)
    if wanted is None or given in _SAFE.get(wanted, ()):
        # pandas holds integers with gaps as float64, which MLflow then refuses for integer columns.
        if wanted in ("integer", "long") and column.null_count:
            raise InvalidValue(f"Column {name!r} of type {wanted} has missing values")
        return
    if wanted in ("float", "double") and given == "int64" and set(column.to_pylist()) <= {0, 1, None}:
        return
    raise InvalidValue(f"Column {name!r} is of type {given} and cannot be converted safely to {wanted}")
