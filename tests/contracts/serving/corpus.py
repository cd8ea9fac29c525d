"""Requests to /invocations made from a model's own rows: good ones in every form, and bad ones."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tests.integration.serving.zoo import Animal

JSON = "application/json"


@dataclass(frozen=True)
class Case:
    """One request; `content_type` None sends none."""

    name: str
    body: bytes
    content_type: str | None = JSON


def corpus(animal: Animal) -> list[Case]:
    """All requests for one model."""
    cases = _common()
    if animal.table is not None:
        cases += _frame(animal.table) + _frame_values(animal.table) + _frame_types(animal.table)
    if animal.tensors:
        cases += _tensors({name: np.asarray(value).tolist() for name, value in animal.tensors.items()})
    if animal.params and animal.table is not None:
        split = _split(animal.table)
        cases += [
            _json(f"params {n}", {"dataframe_split": split, "params": p}) for n, p in enumerate(animal.params)
        ]
    return cases


def _json(name: str, document: Any) -> Case:
    return Case(name, json.dumps(document, default=str).encode())


def _common() -> list[Case]:
    return [
        Case("no JSON", b"{not json"),
        Case("empty body", b""),
        Case("not UTF-8", b'{"inputs": ["\xff"]}'),
        Case("a list", b"[1, 2]"),
        Case("a number", b"3"),
        Case("no form", b"{}"),
        Case("unknown form", b'{"rows": [[1]]}'),
        Case("two forms", b'{"inputs": [[1]], "instances": [[1]]}'),
        Case("split is a list", b'{"dataframe_split": [1]}'),
        Case("split without data", b'{"dataframe_split": {"columns": ["a"]}}'),
        Case("split with more", b'{"dataframe_split": {"columns": ["a"], "data": [[1]], "x": 1}}'),
        Case("records is an object", b'{"dataframe_records": {"a": 1}}'),
        Case("pickle", b"\x80\x04N.", "application/octet-stream"),
        Case("form data", b"a=1", "application/x-www-form-urlencoded"),
        Case("other charset", b'{"inputs": [[1]]}', "application/json; charset=latin-1"),
        Case("other parameter", b'{"inputs": [[1]]}', "application/json; format=split"),
        Case("no content type", b'{"inputs": [[1]]}', None),
        Case("broken parquet", b"PAR1", "application/vnd.apache.parquet"),
    ]


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    return [[None if pd.isna(v) else v for v in row] for row in table.astype(object).to_numpy().tolist()]


def _split(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "data": _rows(table)}


def _frame(table: pd.DataFrame) -> list[Case]:
    rows, names = _rows(table), list(table.columns)
    records = [dict(zip(names, row, strict=True)) for row in rows]
    split = _split(table)
    wide = {"columns": ["extra", *names], "data": [["x", *row] for row in rows]}
    cases = [
        _json("split", {"dataframe_split": split}),
        _json("split, one row", {"dataframe_split": {"columns": names, "data": rows[:1]}}),
        _json("split with index", {"dataframe_split": {**split, "index": list(range(5, 5 + len(rows)))}}),
        _json("split reversed", {"dataframe_split": _split(table[names[::-1]])}),
        _json("split with extra", {"dataframe_split": wide}),
        _json("split and unknown key", {"dataframe_split": split, "more": 1}),
        _json("split and params", {"dataframe_split": split, "params": {"unknown": 1}}),
        _json("split without columns", {"dataframe_split": {"data": rows}}),
        _json("split, a name less", {"dataframe_split": {"columns": names[:-1], "data": rows}}),
        _json("split, no rows", {"dataframe_split": {"columns": names, "data": []}}),
        _json("split, ragged", {"dataframe_split": {"columns": names, "data": [rows[0], rows[0][:-1]]}}),
        _json("records", {"dataframe_records": records}),
        _json("records, one", {"dataframe_records": records[:1]}),
        _json("records with extra", {"dataframe_records": [{**r, "extra": 1} for r in records]}),
        _json("records of numbers", {"dataframe_records": [1, 2]}),
        Case("charset", _json("", {"dataframe_split": split}).body, "application/json; charset=utf-8"),
        Case("CSV", table.to_csv(index=False).encode(), "text/csv"),
        Case("CSV reversed", table[names[::-1]].to_csv(index=False).encode(), "text/csv"),
        Case("CSV with extra", table.assign(extra=1).to_csv(index=False).encode(), "text/csv"),
        Case("CSV empty", b"", "text/csv"),
        Case("CSV as text/plain", table.to_csv(index=False).encode(), "text/plain"),
        Case("Parquet", _parquet(table), "application/vnd.apache.parquet"),
    ]
    for name in names[:2]:
        without = table.drop(columns=name)
        label = f"without {name}"
        cases.append(_json(f"split {label}", {"dataframe_split": _split(without)}))
        cases.append(
            _json(
                f"records {label}",
                {"dataframe_records": [{k: v for k, v in r.items() if k != name} for r in records]},
            )
        )
        cases.append(Case(f"CSV {label}", without.to_csv(index=False).encode(), "text/csv"))
        cases.append(Case(f"Parquet {label}", _parquet(without), "application/vnd.apache.parquet"))
    return cases


def _frame_values(table: pd.DataFrame) -> list[Case]:
    rows, names = _rows(table), list(table.columns)
    records = [dict(zip(names, row, strict=True)) for row in rows]
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    cut = {**columns, names[-1]: columns[names[-1]][:1]}
    return [
        _json("inputs of columns", {"inputs": columns}),
        _json("inputs of one row", {"inputs": records[0]}),
        _json("inputs of records", {"inputs": records}),
        _json("inputs of rows", {"inputs": rows}),
        _json("inputs of a value", {"inputs": rows[0][0]}),
        _json("inputs of a list", {"inputs": [row[0] for row in rows]}),
        _json("inputs without one", {"inputs": {k: v for k, v in columns.items() if k != names[0]}}),
        _json("inputs with extra", {"inputs": {**columns, "extra": columns[names[0]]}}),
        _json("inputs of other lengths", {"inputs": cut}),
        _json("instances of records", {"instances": records}),
        _json("instances of rows", {"instances": rows}),
        _json("instances of columns", {"instances": columns}),
        _json(
            "instances without one",
            {"instances": [{k: v for k, v in r.items() if k != names[0]} for r in records]},
        ),
        _json("empty inputs", {"inputs": []}),
        _json("empty instances", {"instances": []}),
        _json("null inputs", {"inputs": None}),
    ]


_ODD: dict[str, str] = {
    "null": "null", "a float": "1.5", "an integer": "3", "a number in text": '"2.5"',
    "an integer in text": '"4"',
    "a word": '"word"', "empty text": '""', "true": "true", "false": "false",
    "NaN": "NaN", "Infinity": "Infinity",
    "a list": "[1]", "an object": '{"a": 1}', "a huge float": "1e400", "2**40": str(2**40), "2**70": str(2**70),
    "a negative": "-2.5", "minus zero": "-0.0", "NaN in text": '"nan"',
}  # fmt: skip


def _frame_types(table: pd.DataFrame) -> list[Case]:
    """Each kind of JSON value in the first and in the last column."""
    names = list(table.columns)
    cases = []
    for name in dict.fromkeys((names[0], names[-1])):
        for label, value in _ODD.items():
            row = json.dumps(dict(zip(names, _rows(table)[0], strict=True)) | {name: "@"}, default=str)
            record = row.replace('"@"', value)
            cells = json.dumps(
                ["@" if n == name else v for n, v in zip(names, _rows(table)[0], strict=True)], default=str
            )
            split = f'{{"dataframe_split": {{"columns": {json.dumps(names)}, "data": [{cells}]}}}}'
            cases.append(Case(f"split {name}={label}", split.replace('"@"', value).encode()))
            cases.append(Case(f"records {name}={label}", f'{{"dataframe_records": [{record}]}}'.encode()))
            cases.append(Case(f"inputs {name}={label}", f'{{"inputs": [{record}]}}'.encode()))
    return cases


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def _tensors(tensors: dict[str, Any]) -> list[Case]:
    if list(tensors) == [""]:
        rows = tensors[""]
        width = len(rows[0])
        names = [f"x{at}" for at in range(width)]
        return [
            _json("inputs", {"inputs": rows}),
            _json("inputs, one row", {"inputs": rows[:1]}),
            _json("instances", {"instances": rows}),
            _json("inputs, flat", {"inputs": rows[0]}),
            _json("inputs, too wide", {"inputs": [[*row, 1.0] for row in rows]}),
            _json("inputs, ragged", {"inputs": [rows[0], rows[0][:-1]]}),
            _json("inputs, three deep", {"inputs": [rows]}),
            _json("inputs of integers", {"inputs": [[1] * width]}),
            _json("inputs of text", {"inputs": [["a"] * width]}),
            _json("inputs of numbers in text", {"inputs": [["1.5"] * width]}),
            _json("inputs with null", {"inputs": [[None, *rows[0][1:]]]}),
            _json("inputs of true", {"inputs": [[True] * width]}),
            _json("inputs, an object", {"inputs": {"x": rows}}),
            _json("inputs, empty", {"inputs": []}),
            _json("inputs and params", {"inputs": rows, "params": {"a": 1}}),
            _json("split", {"dataframe_split": {"columns": names, "data": rows}}),
            _json("split without names", {"dataframe_split": {"data": rows}}),
            _json(
                "split, too narrow",
                {"dataframe_split": {"columns": names[1:], "data": [r[1:] for r in rows]}},
            ),
            Case("CSV", pd.DataFrame(rows, columns=names).to_csv(index=False).encode(), "text/csv"),
        ]
    records = [{name: value[at] for name, value in tensors.items()} for at in range(2)]
    first = next(iter(tensors))
    return [
        _json("inputs", {"inputs": tensors}),
        _json("instances", {"instances": records}),
        _json("inputs with extra", {"inputs": {**tensors, "extra": [1]}}),
        _json("inputs without one", {"inputs": {k: v for k, v in tensors.items() if k != first}}),
        _json(
            "instances without one",
            {"instances": [{k: v for k, v in r.items() if k != first} for r in records]},
        ),
        _json("inputs of rows", {"inputs": tensors[first]}),
        _json("inputs, too wide", {"inputs": {**tensors, first: [[*row, 1.0] for row in tensors[first]]}}),
        _json("inputs of text", {"inputs": {**tensors, first: [["a"] * len(row) for row in tensors[first]]}}),
        _json("inputs of other lengths", {"inputs": {**tensors, first: tensors[first][:1]}}),
        _json("records of lists", {"dataframe_records": records}),
        _json(
            "split of lists",
            {"dataframe_split": {"columns": list(tensors), "data": [list(r.values()) for r in records]}},
        ),
    ]
