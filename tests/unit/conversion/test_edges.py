"""Edge rows stay inside the signature and reach its borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.conversion.edges import BATCH, TEXTS, edge_datasets, invent
from mlflow_deploy.conversion.native import Column, NativeModel, Tensor
from mlflow_deploy.conversion.parity import Dataset
from mlflow_deploy.conversion.rows import count

COLUMNS = (
    Column("name", "string"),
    Column("count", "long"),
    Column("small", "integer"),
    Column("size", "double"),
    Column("flag", "boolean"),
)
BASE = pd.DataFrame(
    {
        "name": pd.Series(["a", "b", np.nan], dtype=object),
        "count": [1, 5, 9],
        "small": np.array([1, 2, 3], dtype=np.int32),
        "size": [0.5, np.nan, 2.5],
        "flag": [True, False, True],
    }
)


def model(**settings: Any) -> NativeModel:
    nothing = cast(Any, None)
    fields = {"folder": Path(), "meta": nothing, "pyfunc": nothing, "columns": COLUMNS}
    return NativeModel(**(fields | settings))


@pytest.fixture(scope="module")
def made() -> dict[str, Dataset]:
    native = model(hints={"name": ("a", "c"), "count": (2.5, 7), "size": (0.25,)})
    return {item.name: item for item in edge_datasets(native, BASE)}


def test_types_stay_those_of_the_signature(made: dict[str, Dataset]) -> None:
    for dataset in made.values():
        types = {str(name): str(dtype) for name, dtype in dataset.rows.dtypes.items()}
        assert types == {
            "name": "object",
            "count": "int64",
            "small": "int32",
            "size": "float64",
            "flag": "bool",
        }, dataset.name


def test_every_column_that_may_be_missing_is_missing_once_alone(made: dict[str, Dataset]) -> None:
    rows = made["missing values"].rows
    alone = rows[rows[["name", "size"]].isna().sum(axis=1) == 1]
    assert alone["name"].isna().any()
    assert alone["size"].isna().any()
    assert rows[["name", "size"]].isna().all(axis=1).any()


def test_texts_hold_other_scripts(made: dict[str, Dataset]) -> None:
    assert set(made["unseen and non-ASCII texts"].rows["name"]) >= set(TEXTS)


def test_whole_numbers_reach_beyond_what_32_bit_floats_hold(made: dict[str, Dataset]) -> None:
    assert 2**24 + 1 in set(made["outliers"].rows["count"])


def test_extremes_do_not_gate(made: dict[str, Dataset]) -> None:
    assert not made["extreme numbers"].gating
    assert all(item.gating for name, item in made.items() if name != "extreme numbers")


def test_known_values_are_tried_in_the_columns_type(made: dict[str, Dataset]) -> None:
    rows = made["values known to the model"].rows
    assert {"a", "c"} <= set(rows["name"].dropna())
    assert {2, 7} <= set(rows["count"])
    assert 0.25 in set(rows["size"])


def test_the_large_batch_is_large_and_lies_between_the_rows(made: dict[str, Dataset]) -> None:
    rows = made["large batch"].rows
    assert len(rows) == BATCH
    assert rows["size"].between(0.5, 2.5).sum() + rows["size"].isna().sum() == BATCH
    assert rows["size"].nunique() > 100


def test_single_rows_are_sent_one_by_one(made: dict[str, Dataset]) -> None:
    assert made["single rows"].single


def test_the_same_rows_are_made_every_time(made: dict[str, Dataset]) -> None:
    again = {item.name: item for item in edge_datasets(model(), BASE)}
    pd.testing.assert_frame_equal(again["missing values"].rows, made["missing values"].rows)


def test_a_tensor_has_numbered_columns() -> None:
    native = model(columns=(), tensors=(Tensor("float64", (-1, 3)),))
    for dataset in edge_datasets(native, {"": np.ones((2, 3))}):
        assert native.as_input(dataset.rows).shape == (count(dataset.rows), 3)


def test_whole_numbers_are_tried_inside_and_just_outside_what_was_seen() -> None:
    native = model(columns=(), tensors=(Tensor("int64", (-1, 3)),))
    tokens = np.array([[2, 3, 9], [5, 9, 2]])
    made = {item.name: item for item in edge_datasets(native, {"": tokens})}
    inside, outside = (made[f"whole numbers {where} the seen range"] for where in ("inside", "outside"))
    assert set(inside.rows[""].flat) == set(range(2, 10))
    assert outside.strict
    assert {-1, 1, 10, -11, 2**31 - 1} <= set(outside.rows[""].flat)
    assert all(((row < 2) | (row > 9)).sum() == 1 for row in outside.rows[""])


def test_rows_can_be_invented_from_the_signature() -> None:
    rows = invent(model(hints={"name": ("a",)}))
    assert set(rows["name"]) == {"a"}
    assert rows["count"].dtype == np.int64
    assert rows["size"].nunique() > 100
