"""Rows of tensors: types, shapes, several inputs, and their edge rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.bundle import Feed
from mlflow_deploy.conversion.answers import as_answer, concatenate
from mlflow_deploy.conversion.edges import edge_datasets, invent, refuses
from mlflow_deploy.conversion.evidence import Evidence
from mlflow_deploy.conversion.native import NativeModel, Tensor
from mlflow_deploy.conversion.parity import Dataset, compare, refer
from mlflow_deploy.conversion.rows import SHOWN, count, take, tensors_from, values

IMAGE, SIDE = Tensor("float32", (-1, 1, 8, 8), "image"), Tensor("int64", (-1, 2), "side")


class Model(NativeModel):
    """A model of tensors that adds up what it is given, and refuses negative whole numbers."""

    def predict(self, rows: Any) -> Any:
        if "side" in rows and (rows["side"] < 0).any():
            raise ValueError("negative")
        sums = {name: array.reshape(len(array), -1).sum(axis=1) for name, array in rows.items()}
        return as_answer({"sum": sum(sums.values()), "many": np.ones(count(rows)) > 0})


def model(*tensors: Tensor) -> NativeModel:
    nothing = cast(Any, None)
    return Model(folder=Path(), meta=nothing, pyfunc=nothing, tensors=tensors)


def rows(number: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(number, 1, 8, 8)).astype(np.float32)
    return {"image": image, "side": rng.integers(0, 5, (number, 2))}


def test_edge_rows_of_tensors_keep_types_and_shapes() -> None:
    datasets = list(edge_datasets(model(IMAGE, SIDE), rows()))

    assert {item.name for item in datasets} >= {"single rows", "missing values", "outliers", "large batch"}
    for item in datasets:
        image, side = item.rows["image"], item.rows["side"]
        assert (image.dtype, image.shape[1:]) == (np.float32, (1, 8, 8)), item.name
        assert (side.dtype, side.shape[1:]) == (np.int64, (2,)), item.name
    outliers = next(item.rows for item in datasets if item.name == "outliers")
    assert np.abs(outliers["image"]).max() > 10 * np.abs(rows()["image"]).max()
    assert 2**24 + 1 in outliers["side"]


def test_sequences_are_also_tried_at_half_the_length() -> None:
    sequence = Tensor("float32", (-1, -1, 3), "words")
    datasets = {
        item.name: item for item in edge_datasets(model(sequence), {"words": np.ones((4, 10, 3), "f4")})
    }
    assert datasets["half the size of dimension 1"].rows["words"].shape == (4, 5, 3)


def test_large_tensors_make_a_batch_that_fits_into_memory() -> None:
    wide = Tensor("float32", (-1, 512, 512), "image")
    base = {"image": np.zeros((2, 512, 512), np.float32)}
    batch = next(item.rows for item in edge_datasets(model(wide), base) if item.name == "large batch")
    assert 16 <= count(batch) <= 64


def test_rows_that_are_answered_with_nan_count_as_refused() -> None:
    holes = take(rows(), [0, 1])
    holes["image"][1, 0, 3, 3] = np.nan

    found = refer(model(IMAGE, SIDE), Dataset("rows", holes))

    assert (len(found.answers), found.refused) == (1, 1)
    assert refuses(model(IMAGE, SIDE), rows(), np.nan) == {"image"}


def test_a_feed_is_limited_by_its_own_tensor_only() -> None:
    evidence = Evidence([], [], frozenset({"image"}), frozenset(), ())
    image, side = (Feed(name=name, dtype="float32", tensor=name) for name in ("image", "side"))
    assert (evidence.limited(image).accepts, evidence.limited(side).accepts) == ("finite", "all")


def test_several_outputs_are_compared_one_by_one() -> None:
    class Served:
        def run(self, given: Any) -> Any:
            right = model(IMAGE, SIDE).predict(given)
            return as_answer({"sum": right.arrays["sum"] + 0.5, "many": right.arrays["many"]})

    reference = refer(model(IMAGE, SIDE), Dataset("rows", rows()))
    report = compare(Served(), [reference], format="onnx", variant="float32")

    (result,) = report.datasets
    assert not report.passed
    assert result.max_abs_diff == pytest.approx(0.5, rel=1e-3)
    assert result.label_agreement == 1.0
    assert set(report.worst[0].native) == {"sum", "many"}
    assert len(report.worst[0].values["image"]) == SHOWN


def test_answers_of_another_form_are_no_match() -> None:
    class Served:
        def run(self, given: Any) -> Any:
            return as_answer(np.zeros(count(given)))

    reference = refer(model(IMAGE, SIDE), Dataset("rows", rows()))
    report = compare(Served(), [reference], format="onnx", variant="float32")
    assert "in form array [] instead of dict ['sum', 'many']" in report.finding


@pytest.mark.parametrize(
    "given",
    [
        {"image": np.zeros((2, 64)), "side": [[1, 2], [3, 4]]},
        pd.DataFrame({"image": [np.zeros((1, 8, 8))] * 2, "side": [[1, 2], [3, 4]]}),
    ],
)
def test_tensors_come_from_mappings_and_from_tables_of_lists(given: Any) -> None:
    made = tensors_from(given, [IMAGE, SIDE])
    assert (made["image"].shape, made["image"].dtype) == ((2, 1, 8, 8), np.float32)
    assert made["side"].tolist() == [[1, 2], [3, 4]]


def test_a_table_of_numbers_is_the_only_tensor() -> None:
    made = tensors_from(pd.DataFrame(np.arange(6.0).reshape(2, 3)), [Tensor("float64", (-1, 3))])
    assert made[""].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_tensor_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="have 3 columns, the model takes 4"):
        tensors_from(np.zeros((2, 3)), [Tensor("float64", (-1, 4))])
    with pytest.raises(ValueError, match="'side' of the model's signature is missing"):
        tensors_from({"image": np.zeros((2, 64))}, [IMAGE, SIDE])


def test_rows_are_invented_for_tensors() -> None:
    made = invent(model(IMAGE, Tensor("float32", (-1, -1), "free"), Tensor("str", (-1,), "text")))
    assert made["image"].shape[1:] == (1, 8, 8)
    assert made["free"].ndim == 2
    assert made["text"].dtype == object


def test_a_row_of_a_large_tensor_is_shortened_in_reports() -> None:
    shown = values({"": np.zeros((1, 100))}, 0)
    assert shown["inputs"][-1] == "... 36 more numbers"


def test_parts_of_answers_are_joined() -> None:
    both = concatenate(
        [as_answer(pd.DataFrame({"a": [1], "b": [2]})), as_answer(pd.DataFrame({"a": [3], "b": [4]}))]
    )
    assert both.form == "columns"
    assert both.arrays["a"].tolist() == [1, 3]
    with pytest.raises(TypeError, match="answers with a list"):
        as_answer([1, 2])
