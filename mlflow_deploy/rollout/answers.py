"""Takes recorded requests and answers apart into rows, whatever protocol they came in."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from typing import Any

import msgspec

from mlflow_deploy.serving import tensors
from mlflow_deploy.serving.errors import RequestError
from mlflow_deploy.serving.recorder import Record

Value = str | float | int | bool | None
Row = tuple[Value, ...]
"""All values of one row of an answer, in a fixed order."""

_SHOWN_CHARACTERS = 300


def answer_rows(record: Record) -> list[Row]:
    """The rows of an answer with status 200.

    Raises:
        ValueError: it is in no form that is known here.
    """
    try:
        body = _decoded(record.answer, record.answer_type)
        if record.head:
            return _tensor_rows(_json(body[: record.head]), memoryview(body)[record.head :])
        document = _json(body)
        if isinstance(document, dict) and isinstance(document.get("outputs"), list):
            return _tensor_rows(document, memoryview(b""))
        if isinstance(document, dict) and "predictions" in document:
            return _prediction_rows(document["predictions"])
    except (RequestError, KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"the answer cannot be read: {error}") from error
    raise ValueError("the answer has no predictions")


def shown_input(record: Record, row: int) -> str:
    """A row of a request, for people; shortened, and what can be told of it when it is not text."""
    mime = record.request_type.partition(" ")[0] or "unknown type"
    if not record.request:
        return "too large to be kept"
    try:
        found = _input_row(_decoded(record.request, record.request_type), mime, row)
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error):
        return f"{len(record.request)} bytes of {mime}"
    return shortened(found)


def shortened(value: Any) -> str:
    """A value as JSON, cut after a few hundred characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


# --- details -----------------------------------------------------------------------------------------------


def _decoded(body: bytes, type_: str) -> bytes:
    encoding = type_.partition(" ")[2]
    return zlib.decompress(body, zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else body


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        # NaN and Infinity are no JSON, but Python's servers send them.
        return json.loads(body)


def _prediction_rows(predictions: Any) -> list[Row]:
    """Rows of MLflow's answer: a list of rows, a mapping of columns, or one value."""
    if isinstance(predictions, dict):
        columns = list(predictions.values())
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
        if len(lengths) == 1 and -1 not in lengths:
            return [tuple(_leaves(list(row))) for row in zip(*columns, strict=True)]
    if isinstance(predictions, list):
        return [tuple(_leaves(row)) for row in predictions]
    return [tuple(_leaves(predictions))]


def _tensor_rows(head: dict[str, Any], binary: memoryview) -> list[Row]:
    """Rows of an answer of the Open Inference Protocol; the first dimension counts them."""
    rows: list[list[Value]] = []
    at = 0
    for output in head["outputs"]:
        name, kind, shape = output["name"], output["datatype"], output["shape"]
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = tensors.from_json(name, kind, shape, output["data"])
        else:
            array = tensors.from_binary(name, kind, shape, binary[at : at + size])
            at += size
        count = array.shape[0] if array.ndim else 1
        flat = tensors.to_json(array)
        width = len(flat) // count if count else 0
        rows = rows or [[] for _ in range(count)]
        if len(rows) != count:
            raise ValueError("the outputs have different numbers of rows")
        for row in range(count):
            rows[row] += flat[row * width : (row + 1) * width]
    return [tuple(row) for row in rows]


def _leaves(value: Any) -> list[Value]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _leaves(value[key])]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    # As JSON it is one of these.
    return [None if isinstance(value, float) and math.isnan(value) else value]


def _input_row(body: bytes, mime: str, row: int) -> Any:
    if mime == "text/csv":
        header, *lines = csv.reader(io.StringIO(body.decode()))
        return dict(zip(header, lines[row], strict=True))
    document = _json(body)
    if "dataframe_split" in document:
        split = document["dataframe_split"]
        values = split["data"][row]
        return dict(zip(split["columns"], values, strict=True)) if "columns" in split else values
    if "dataframe_records" in document:
        return document["dataframe_records"][row]
    given = document.get("instances", document.get("inputs"))
    if isinstance(given, dict):
        return {name: values[row] for name, values in given.items()}
    if given and isinstance(given[0], dict) and "datatype" in given[0]:
        return {tensor["name"]: _tensor_row(tensor, row) for tensor in given}
    return given[row]


def _tensor_row(tensor: dict[str, Any], row: int) -> list[Value]:
    flat = _leaves(tensor["data"])
    width = len(flat) // tensor["shape"][0]
    return flat[row * width : (row + 1) * width]
