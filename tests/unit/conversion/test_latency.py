"""The choice between forms: noise does not change it, and a clearly faster form is taken."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.conversion.latency import CLEARLY, Latency, fastest, measure, request_body


def at(one: float, many: float) -> Latency:
    return Latency({1: one, 64: many})


def test_a_form_that_is_a_little_faster_does_not_overtake() -> None:
    assert fastest({"onnx": at(100, 1000), "torchscript": at(90, 900)}) == "onnx"


def test_a_form_that_is_clearly_faster_overtakes() -> None:
    assert fastest({"onnx": at(100, 1000), "torchscript": at(50, 900)}) == "torchscript"


def test_a_gain_at_one_row_is_weighed_against_a_loss_at_many() -> None:
    assert fastest({"onnx": at(100, 1000), "torchscript": at(50, 2000)}) == "onnx"


def test_the_order_of_the_table_decides_below_the_threshold() -> None:
    just_below, just_above = CLEARLY * 0.99, CLEARLY * 1.01
    assert fastest({"a": at(100, 100), "b": at(100 / just_below, 100 / just_below)}) == "a"
    assert fastest({"a": at(100, 100), "b": at(100 / just_above, 100 / just_above)}) == "b"


def test_three_forms_are_compared_with_the_best_so_far() -> None:
    assert fastest({"a": at(100, 100), "b": at(50, 50), "c": at(45, 45)}) == "b"


def test_the_slower_of_two_real_calls_is_seen() -> None:
    def slow(body: bytes) -> bytes:
        time.sleep(0.004)
        return body

    def fast(body: bytes) -> bytes:
        time.sleep(0.001)
        return body

    found = measure({"slow": slow, "fast": fast}, {"": np.zeros((3, 2))})

    assert found["fast"].times_faster(found["slow"]) > 1.5
    assert set(found["slow"].us) == {1, 64}
    assert found["slow"].us[1] > 4000


def test_missing_values_are_null_in_a_body() -> None:
    rows = pd.DataFrame({"x": [1.5, np.nan], "t": ["a", None]})
    body = json.loads(request_body(rows))
    assert body == {"dataframe_split": {"columns": ["x", "t"], "data": [[1.5, "a"], [None, None]]}}


@pytest.mark.parametrize(
    ("rows", "inputs"),
    [({"": np.ones((1, 2))}, [[1.0, 1.0]]), ({"a": np.ones(1), "b": np.zeros(1)}, {"a": [1.0], "b": [0.0]})],
)
def test_tensors_are_inputs_in_a_body(rows: dict[str, np.ndarray], inputs: object) -> None:
    assert json.loads(request_body(rows)) == {"inputs": inputs}
