"""Graph inputs made from rows: types, missing values, order of columns, and answers made from outputs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.bundle import Feed, Output, Servable
from mlflow_deploy.conversion.feeds import build_feeds, read_answer

ROWS = pd.DataFrame({"b": [1, 2], "a": [0.5, np.nan], "t": ["x", np.nan], "f": [True, False]})


def test_columns_are_stacked_in_the_order_of_the_feed() -> None:
    feeds = build_feeds([Feed(name="in", dtype="float32", columns=("a", "b", "f"))], ROWS)

    assert feeds["in"].dtype == np.float32
    np.testing.assert_array_equal(feeds["in"], np.array([[0.5, 1, 1], [np.nan, 2, 0]], dtype=np.float32))


def test_whole_numbers_keep_all_digits() -> None:
    rows = pd.DataFrame({"id": [2**53 + 1, 2**62 + 1]})
    feeds = build_feeds([Feed(name="id", dtype="int64", columns=("id",))], rows)
    assert feeds["id"].tolist() == [[2**53 + 1], [2**62 + 1]]


def test_missing_texts_become_the_marker() -> None:
    feed = Feed(name="t", dtype="str", columns=("t",), missing="?")
    assert build_feeds([feed], ROWS)["t"].tolist() == [["x"], ["?"]]
    assert build_feeds([feed], ROWS.assign(t=[None, "y"]))["t"].tolist() == [["?"], ["y"]]


def test_missing_numbers_become_the_feeds_value() -> None:
    feed = Feed(name="a", dtype="int64", columns=("a",), missing=-1)
    assert build_feeds([feed], pd.DataFrame({"a": [3.0, np.nan]}))["a"].tolist() == [[3], [-1]]


def test_a_missing_whole_number_is_an_error_when_nothing_stands_for_it() -> None:
    with pytest.raises(ValueError, match="which type int64 cannot hold"):
        build_feeds([Feed(name="a", dtype="int64", columns=("a",))], ROWS)


def test_an_absent_optional_column_counts_as_missing() -> None:
    feeds = build_feeds([Feed(name="z", dtype="float64", columns=("z",))], ROWS)
    assert np.isnan(feeds["z"]).all()
    assert feeds["z"].shape == (2, 1)


def test_a_tensor_takes_its_shape() -> None:
    rows = {"": np.arange(6.0).reshape(2, 3)}
    feeds = build_feeds([Feed(name="in", dtype="float32", tensor="", shape=(-1, 3))], rows)
    assert feeds["in"].shape == (2, 3)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_32_bits_become_infinite_without_a_warning() -> None:
    feeds = build_feeds(
        [Feed(name="in", dtype="float32", columns=("x",))], pd.DataFrame({"x": [1e300, -1e300]})
    )
    assert feeds["in"].tolist() == [[np.inf], [-np.inf]]


@pytest.mark.parametrize(
    ("output", "values", "expected"),
    [
        (Output(name="y", dtype="int64", squeeze=True), np.array([[1], [2]]), np.array([1, 2])),
        (Output(name="y", dtype="bool"), np.array([0, 1]), np.array([False, True])),
        (Output(name="y", dtype="float64"), np.float32([[0.5, 1]]), np.array([[0.5, 1.0]])),
        (Output(name="y", dtype="str"), np.array(["a"], dtype=object), np.array(["a"], dtype=object)),
    ],
)
def test_the_answer_has_the_native_dtype(output: Output, values: np.ndarray, expected: np.ndarray) -> None:
    answer = read_answer(Servable(kind="onnx", path="x", outputs=(output,)), [values])
    assert answer.array.dtype == expected.dtype
    np.testing.assert_array_equal(answer.array, expected)
