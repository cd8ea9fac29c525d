"""Recorded answers of every protocol come apart into the same rows, and requests into readable ones."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
import numpy as np
import pytest

from mlflow_deploy.rollout.answers import answer_rows, shown_input
from mlflow_deploy.serving.recorder import Record

JSON = "application/json identity"


def record(
    answer: Any = None,
    request: Any = None,
    *,
    answer_type: str = JSON,
    request_type: str = JSON,
    head: int = 0,
) -> Record:
    def body(given: Any) -> bytes:
        return given if isinstance(given, bytes) else msgspec.json.encode(given)

    return Record(0, "id", "/", 200, 0.0, 0, body(request), request_type, body(answer), answer_type, head)


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


BINARY_HEAD = msgspec.json.encode(
    {
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
            tensor("label", "BYTES", [2], ["a", "b"]),
        ]
    }
)
BINARY = BINARY_HEAD + np.array([[0.5, 0.25], [1, 2]], np.float32).tobytes()


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        ({"predictions": [1, 2.5]}, [(1,), (2.5,)]),
        ({"predictions": ["a", None]}, [("a",), (None,)]),
        ({"predictions": [[0.1, 0.9], [0.4, 0.6]]}, [(0.1, 0.9), (0.4, 0.6)]),
        ({"predictions": [{"b": 2, "a": [1]}]}, [(1, 2)]),
        ({"predictions": {"x": [1, 2], "y": ["a", "b"]}}, [(1, "a"), (2, "b")]),
        ({"predictions": {"x": 1, "y": 2}}, [(1, 2)]),
        ({"predictions": "text"}, [("text",)]),
        (b'{"predictions": [NaN, Infinity]}', [(None,), (float("inf"),)]),
        ({"outputs": [tensor("y", "FP64", [2, 2], [1.0, 2.0, 3.0, 4.0])]}, [(1.0, 2.0), (3.0, 4.0)]),
        (
            {"outputs": [tensor("y", "INT64", [2], [1, 2]), tensor("z", "BYTES", [2], ["a", "b"])]},
            [(1, "a"), (2, "b")],
        ),
    ],
)
def test_answers_come_apart_into_rows(answer: Any, rows: Any) -> None:
    assert answer_rows(record(answer)) == rows


def test_binary_and_compressed_answers() -> None:
    assert answer_rows(record(BINARY, head=len(BINARY_HEAD))) == [(0.5, 0.25, "a"), (1.0, 2.0, "b")]
    packed = gzip.compress(b'{"predictions": [1]}')
    assert answer_rows(record(packed, answer_type="application/json gzip")) == [(1,)]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no JSON",
        [1, 2],
        {"error": "x"},
        {"outputs": [{"name": "y"}]},
        {"outputs": [tensor("y", "FP64", [2], [1.0])]},
        {"outputs": [tensor("y", "FP64", [1], [1.0]), tensor("z", "FP64", [2], [1.0, 2.0])]},
    ],
)
def test_other_bodies_are_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        answer_rows(record(answer))


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        ({"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2], [3, 4]]}}, '{"x": 3, "y": 4}'),
        ({"dataframe_split": {"data": [[1, 2], [3, 4]]}}, "[3, 4]"),
        ({"dataframe_records": [{"x": 1}, {"x": 3}]}, '{"x": 3}'),
        ({"instances": [[1], [3]]}, "[3]"),
        ({"inputs": {"x": [1, 3]}}, '{"x": 3}'),
        ({"inputs": [tensor("x", "FP64", [2, 2], [1, 2, 3, 4])]}, '{"x": [3, 4]}'),
        ({"inputs": [tensor("x", "FP64", [2, 2], [[1, 2], [3, 4]])]}, '{"x": [3, 4]}'),
        ({"instances": ["y" * 500, "x" * 500]}, '"' + "x" * 296 + "..."),
        (b"", "too large to be kept"),
        (b"\x00\x01", "2 bytes of application/json"),
        ({"instances": [1]}, "17 bytes of application/json"),
    ],
)
def test_a_row_of_a_request_is_shown(request_: Any, shown: str) -> None:
    assert shown_input(record(request=request_), 1) == shown


def test_rows_of_other_types_are_shown() -> None:
    assert shown_input(record(request=b"x,y\n1,2\n3,4\n", request_type="text/csv identity"), 1) == (
        '{"x": "3", "y": "4"}'
    )
    parquet = record(request=b"PAR1", request_type="application/vnd.apache.parquet identity")
    assert shown_input(parquet, 0) == "4 bytes of application/vnd.apache.parquet"
