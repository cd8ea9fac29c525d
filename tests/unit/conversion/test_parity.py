"""The comparison: what counts as equal, what is counted, and how a report travels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.conversion.answers import as_answer
from mlflow_deploy.conversion.parity import Dataset, Reference, compare, with_ties
from mlflow_deploy.conversion.report import ParityReport, Tolerance


@dataclass
class Served:
    """A servable that gives prepared answers, or raises."""

    answers: Any

    def run(self, rows: pd.DataFrame) -> Any:
        if isinstance(self.answers, Exception):
            raise self.answers
        return as_answer(np.asarray(self.answers)[rows["at"].to_numpy()])


def check(native: Any, served: Any, **settings: Any) -> ParityReport:
    native = np.asarray(native)
    dataset = Dataset("rows", pd.DataFrame({"at": range(len(native))}), **settings.pop("dataset", {}))
    reference = Reference(dataset, as_answer(native), refused=settings.pop("refused", 0))
    return compare(Served(served), [reference], format="onnx", variant="float32", **settings)


def test_equal_numbers_pass() -> None:
    report = check([1.0, 2.0], [1.0 + 1e-6, 2.0], refused=3)

    (result,) = report.datasets
    assert report.passed
    assert (result.rows, result.refused, result.beyond) == (2, 3, 0.0)
    assert result.max_abs_diff == pytest.approx(1e-6, rel=1e-3)
    assert result.mean_abs_diff == pytest.approx(5e-7, rel=1e-3)
    assert "equal on 2 rows" in report.summary


def test_a_number_beyond_tolerance_is_shown_with_its_row() -> None:
    report = check([1.0, 2.0, 3.0], [1.0, 2.1, 3.0])

    assert not report.passed
    assert report.datasets[0].beyond == pytest.approx(1 / 3)
    (worst,) = report.worst
    assert (worst.row, worst.values, worst.native, worst.served) == (1, {"at": 1}, 2.0, 2.1)
    assert "rows: 33.33% of 3 rows" in report.summary.replace("on rows ", "rows: ")


def test_the_absolute_tolerance_follows_the_size_of_the_answers() -> None:
    assert not check([0.0, 1e-6, 2e-6], [1e-9, 1.001e-6, 2e-6]).passed
    assert check([0.0, 1e6, 2e6], [1.0, 1e6, 2e6]).passed
    assert not check([0.0, 1e6, 2e6], [20.0, 1e6, 2e6]).passed


def test_nan_and_infinities_are_equal_only_to_themselves() -> None:
    assert check([np.nan, np.inf, 1.0], [np.nan, np.inf, 1.0]).passed
    assert not check([np.nan, 1.0], [1.0, 1.0]).passed
    assert not check([1.0, 1.0], [np.nan, 1.0]).passed
    assert not check([np.inf, 1.0], [-np.inf, 1.0]).passed


def test_one_wrong_label_is_enough() -> None:
    report = check(["a", "b", "a"], ["a", "b", "b"])

    assert not report.passed
    assert report.datasets[0].label_agreement == pytest.approx(2 / 3)
    assert report.datasets[0].max_abs_diff is None
    assert "have another label" in report.summary


def test_the_most_probable_class_must_be_the_same() -> None:
    native = [[0.500004, 0.499996], [0.9, 0.1]]
    report = check(native, [[0.499998, 0.500002], [0.9, 0.1]], probabilities=True)

    assert not report.passed
    assert report.datasets[0].label_agreement == 0.5


def test_tied_classes_may_swap() -> None:
    assert check([[0.5, 0.5]], [[0.4999999, 0.5000001]], probabilities=True).passed


def test_a_label_may_only_differ_from_one_that_it_is_tied_with() -> None:
    labels = as_answer(np.array(["a", "b", "a"]))
    chances = as_answer(np.array([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4]]))
    dataset = Dataset("rows", pd.DataFrame({"at": range(3)}))
    classes = np.array(["a", "b"])
    reference = with_ties(Reference(dataset, labels, 0), Reference(dataset, chances, 0), classes)

    tied = compare(Served(["b", "a", "a"]), [reference], format="onnx", variant="float32")
    wrong = compare(Served(["a", "b", "b"]), [reference], format="onnx", variant="float32")

    assert tied.passed
    assert not wrong.passed
    assert wrong.datasets[0].label_agreement == pytest.approx(2 / 3)


def test_a_servable_that_raises_fails() -> None:
    report = check([1.0], ValueError("no such\ninput"))

    assert not report.passed
    assert report.datasets[0].error == "it raises ValueError: no such input"


def test_an_answer_of_another_shape_fails() -> None:
    report = check([1.0, 2.0], [[1.0], [2.0]])

    assert not report.passed
    assert "shape (2, 1) instead of (2,)" in report.summary


def test_rows_that_do_not_gate_are_reported_only() -> None:
    equal = Reference(Dataset("rows", pd.DataFrame({"at": [0]})), as_answer(np.array([1.0])), 0)
    wild = Reference(Dataset("wild", pd.DataFrame({"at": [0]}), gating=False), as_answer(np.array([9.0])), 0)

    report = compare(Served([1.0]), [equal, wild], format="onnx", variant="float32")

    assert report.passed
    assert [item.passed for item in report.datasets] == [True, False]


def test_nothing_compared_is_no_proof() -> None:
    empty = Reference(Dataset("rows", pd.DataFrame({"at": []})), as_answer(np.empty(0)), refused=4)
    assert not compare(Served([]), [empty], format="onnx", variant="float32").passed


def test_the_metric_is_given_for_both_answers() -> None:
    report = check([1, 0, 1, 1], [1, 0, 1, 0], dataset={"truth": np.array([1, 0, 1, 1])})

    (result,) = report.datasets
    assert (result.metric, result.native_metric, result.served_metric) == ("accuracy", 1.0, 0.75)


def test_the_metric_of_numbers_is_the_root_mean_square_error() -> None:
    report = check([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], dataset={"truth": np.array([1.0, 2.0, 6.0])})

    assert report.datasets[0].metric == "rmse"
    assert report.datasets[0].native_metric == pytest.approx(np.sqrt(3.0))


def test_a_report_survives_json() -> None:
    report = check([1.0, np.nan, 3.0], [1.0, 2.0, np.inf], tolerance=Tolerance(1e-3, 1e-3))

    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert document["summary"] == report.summary
    assert ParityReport.from_dict(document).to_dict() == report.to_dict()
    assert ParityReport.from_dict(document).datasets[0].max_abs_diff == np.inf
