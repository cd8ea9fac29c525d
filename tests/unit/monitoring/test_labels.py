"""Labels find their prediction, and every label row counts under exactly one heading."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy.errors import ConfigError, DataError
from mlflow_deploy.monitoring import LabelReport, join_labels

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def at(*hours: float) -> pa.Array:
    return pa.array([NOON + datetime.timedelta(hours=hour) for hour in hours])


def predictions(*ids: Any) -> pa.Table:
    return pa.table(
        {"request_id": list(ids), "prediction": np.arange(len(ids)), "time": at(*[0.0] * len(ids))}
    )


def accounted(report: LabelReport) -> bool:
    """Every label row is under one heading."""
    headings = ("matched", "duplicates", "conflicting", "superseded", "unknown", "no_key", "no_value")
    return sum(getattr(report, name) for name in headings) == report.labels


def test_late_duplicate_conflicting_and_unknown_labels_are_counted_apart() -> None:
    labels = pa.table(
        {
            "request_id": ["a", "b", "b", "c", "c", "x", None, "d"],
            "label": [1, 0, 0, 1, 0, 1, 1, None],
            "time": at(1, 50, 2, 3, 4, 5, 6, 7),
        }
    )
    joined = join_labels(predictions("a", "b", "c", "d"), labels, late_after=datetime.timedelta(minutes=90))
    assert joined.rows.select(["request_id", "label"]).to_pylist() == [
        {"request_id": "a", "label": 1},
        {"request_id": "b", "label": 0},
    ]
    report = joined.report
    assert (report.matched, report.duplicates, report.conflicting, report.unknown) == (2, 1, 2, 1)
    assert (report.no_key, report.no_value, report.late, report.coverage) == (1, 1, 1, 0.5)
    assert report.conflicts == ("c",)
    assert accounted(report)


def test_the_order_of_the_labels_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    labels = pa.table(
        {
            "request_id": rng.integers(0, 300, 2_000).astype(str),
            "label": rng.integers(0, 2, 2_000),
            "time": at(*rng.integers(0, 40, 2_000).tolist()),
        }
    )
    asked = predictions(*(str(number) for number in range(200)))
    for conflicts in ("leave out", "latest"):
        first = join_labels(asked, labels, conflicts=conflicts)
        again = join_labels(asked, labels.take(pa.array(rng.permutation(2_000))), conflicts=conflicts)
        assert first.rows == again.rows
        assert first.report.to_dict() | {"conflicts": ()} == again.report.to_dict() | {"conflicts": ()}
        assert accounted(first.report)


def test_the_latest_of_conflicting_labels_is_used_when_asked_for() -> None:
    labels = pa.table(
        {"request_id": ["a", "a", "a", "b", "b"], "label": [0, 1, 1, 0, 1], "time": at(1, 3, 3, 2, 2)}
    )
    joined = join_labels(predictions("a", "b"), labels, conflicts="latest")
    assert joined.rows["label"].to_pylist() == [1]
    report = joined.report
    assert (report.superseded, report.duplicates, report.conflicting) == (1, 1, 2)
    assert accounted(report)
    with pytest.raises(ConfigError, match="no timestamps"):
        join_labels(predictions("a"), labels.drop_columns("time"), conflicts="latest")


def test_a_request_sent_again_is_one_prediction() -> None:
    labels = pa.table({"request_id": ["a", "b"], "label": [1, 0]})
    joined = join_labels(predictions("a", "a", "b", None), labels)
    assert joined.rows["prediction"].to_pylist() == [0, 2]
    report = joined.report
    assert (report.predictions, report.repeated_predictions, report.no_prediction_key) == (2, 1, 1)
    assert (report.matched, report.coverage, report.late) == (2, 1.0, None)


def test_rows_of_one_request_are_told_apart_by_several_keys() -> None:
    asked = pa.table({"request_id": ["a", "a", "b"], "row": [0, 1, 0]})
    labels = pa.table({"request_id": ["b", "a", "a"], "row": [0, 1, 7], "label": ["x", "y", "z"]})
    joined = join_labels(asked, labels, key=("request_id", "row"))
    assert joined.rows.to_pylist() == [
        {"request_id": "a", "row": 1, "label": "y"},
        {"request_id": "b", "row": 0, "label": "x"},
    ]
    assert joined.report.unknown == 1


@pytest.mark.parametrize(
    "keys", [["7", "8", None], [7.0, 8.0, None], pa.array(["7", "8", None]).dictionary_encode()]
)
def test_keys_of_another_type_still_meet(keys: Any) -> None:
    joined = join_labels(predictions(7, 9), pa.table({"request_id": keys, "label": [1, 0, 1]}))
    assert joined.rows["request_id"].to_pylist() == [7]
    assert (joined.report.unknown, joined.report.no_key) == (1, 1)


def test_a_clock_that_went_back_is_reported() -> None:
    labels = pa.table({"request_id": ["a"], "label": [1.5], "time": at(-1)})
    report = join_labels(predictions("a"), labels, late_after=datetime.timedelta(hours=1)).report
    assert (report.matched, report.before_prediction, report.late) == (1, 1, 0)


def test_nothing_joins_with_nothing() -> None:
    labels = pa.table({"request_id": pa.array([], pa.string()), "label": pa.array([], pa.int64())})
    assert join_labels(predictions("a"), labels).report.coverage == 0.0
    report = join_labels(predictions("a").slice(0, 0), labels).report
    assert (report.predictions, report.labels, report.coverage) == (0, 0, None)
    nulls = pa.table({"request_id": pa.nulls(2), "label": pa.nulls(2)})
    assert join_labels(predictions("a"), nulls).report.no_key == 2


def test_tables_without_the_columns_are_refused() -> None:
    with pytest.raises(DataError, match="labels have no column 'label'"):
        join_labels(predictions("a"), pa.table({"request_id": ["a"]}))
    labels = pa.table({"request_id": ["a"], "prediction": [1]})
    with pytest.raises(ConfigError, match="have a column 'prediction' already"):
        join_labels(predictions("a"), labels, label="prediction")
