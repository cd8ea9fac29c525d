"""Metrics are scikit-learn's, intervals hold what they say, and odd windows are states and not errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mlflow_deploy.errors import ConfigError, DataError
from mlflow_deploy.monitoring import PerformanceReport, build_profile, performance

RNG = np.random.default_rng(11)


def binary(rows: int, slope: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and honest scores."""
    score = 1.0 / (1.0 + np.exp(-RNG.normal(0, slope, rows)))
    return (RNG.random(rows) < score).astype(np.int64), score


def of(labels: Any, predictions: Any, **settings: Any) -> PerformanceReport:
    return performance(pd.DataFrame(index=range(len(labels))), labels, predictions=predictions, **settings)


def test_binary_metrics_are_those_of_scikit_learn() -> None:
    labels, score = binary(1_500)
    report, guess = of(labels, score), score >= 0.5
    assert (report.kind, report.state, report.classes) == ("classification", "not compared", ("0", "1"))
    expected = {
        "accuracy": sk.accuracy_score(labels, guess),
        "precision": sk.precision_score(labels, guess),
        "recall": sk.recall_score(labels, guess),
        "f1": sk.f1_score(labels, guess),
        "f1/0": sk.f1_score(labels, guess, pos_label=0),
        "precision_macro": sk.precision_score(labels, guess, average="macro"),
        "recall_macro": sk.recall_score(labels, guess, average="macro"),
        "f1_macro": sk.f1_score(labels, guess, average="macro"),
        "roc_auc": sk.roc_auc_score(labels, score),
        "log_loss": sk.log_loss(labels, score),
        "brier": sk.brier_score_loss(labels, score),
    }
    assert {name: report.metrics[name].value for name in expected} == pytest.approx(expected)
    assert {metric.method for metric in report.metrics.values()} == {"wilson", "delong", "normal", "delta"}


def test_metrics_of_three_classes_are_those_of_scikit_learn() -> None:
    chances = RNG.dirichlet([1, 1, 1], 1_000)
    labels = np.array(["a", "b", "c"])[(RNG.random(1_000)[:, None] > chances.cumsum(axis=1)).sum(axis=1)]
    report = of(labels, chances)
    guess = np.array(["a", "b", "c"])[chances.argmax(axis=1)]
    assert report.metrics["f1_macro"].value == pytest.approx(sk.f1_score(labels, guess, average="macro"))
    assert report.metrics["roc_auc"].value == pytest.approx(
        sk.roc_auc_score(labels, chances, multi_class="ovr")
    )
    assert report.metrics["log_loss"].value == pytest.approx(sk.log_loss(labels, chances))
    assert "precision/b" in report.metrics


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    truth = RNG.normal(50, 10, 800)
    guess = truth + RNG.normal(1, 3, 800)
    report = of(truth, guess)
    expected = {
        "mae": sk.mean_absolute_error(truth, guess),
        "rmse": sk.root_mean_squared_error(truth, guess),
        "median_ae": sk.median_absolute_error(truth, guess),
        "r2": sk.r2_score(truth, guess),
        "bias": float((guess - truth).mean()),
    }
    assert {name: metric.value for name, metric in report.metrics.items()} == pytest.approx(expected)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    labels, score = binary(100_000)
    truth = np.random.default_rng(0).normal(0, 2, 100_000)
    guess = truth + np.random.default_rng(1).standard_t(6, 100_000)
    names = ("accuracy", "precision", "recall", "f1", "f1_macro", "roc_auc", "log_loss", "brier")
    numbers = ("mae", "rmse", "median_ae", "bias", "r2")
    whole = dict(of(labels, score).metrics) | dict(of(truth, guess).metrics)
    held = dict.fromkeys((*names, *numbers), 0)
    for start in range(0, 60_000, 300):
        part = slice(start, start + 300)
        found = dict(of(labels[part], score[part]).metrics) | dict(of(truth[part], guess[part]).metrics)
        for name in held:
            held[name] += found[name].low <= whole[name].value <= found[name].high
    # 200 intervals of 95 %: fewer than 179 or all of them would each happen once in about a thousand runs.
    assert all(count >= 179 for count in held.values()), held
    assert sum(held.values()) < 200 * len(held) * 0.975


def test_a_worse_model_is_called_worse_and_an_equal_one_is_not() -> None:
    alarms, found = 0, 0
    for _ in range(100):
        labels, score = binary(2_000)
        earlier = of(*binary(4_000))
        alarms += of(labels, score, reference=earlier).state == "worse"
        flipped = np.where(RNG.random(2_000) < 0.1, 1 - labels, labels)
        report = of(flipped, score, reference=earlier)
        found += report.state == "worse"
    # At most 1 % by design; more than four of 100 would happen once in 300 runs of that.
    assert alarms <= 4
    assert found == 100
    assert "roc_auc" in report.reason
    assert report.comparisons["roc_auc"].detectable < 0.05


def test_logged_validation_metrics_are_a_reference() -> None:
    labels, score = binary(1_000)
    report = of(labels, score, reference={"roc_auc": 0.99, "accuracy_score": 0.5, "rows_training": 9.0})
    assert report.state == "worse"
    assert {name: entry.state for name, entry in report.comparisons.items()} == {
        "accuracy": "ok",
        "roc_auc": "worse",
    }
    assert any("taken as exact" in note for note in report.notes)
    exact = report.comparisons["roc_auc"].detectable
    sampled = of(labels, score, reference={"roc_auc": 0.99}, reference_rows=500).comparisons["roc_auc"]
    assert sampled.detectable > exact


def test_few_labels_give_no_verdict() -> None:
    labels, score = binary(150)
    report = of(labels, 1.0 - score, reference={"roc_auc": 0.9, "accuracy": 0.8})
    assert report.state == "not enough data"
    assert report.reason == "150 labelled rows, 200 are needed"
    rare = of([1] * 5 + [0] * 500, RNG.random(505), reference={"roc_auc": 0.9})
    assert rare.reason == "5 rows of the rarest class, 20 are needed"


def test_one_class_only_leaves_out_what_needs_two() -> None:
    report = of([1] * 300, RNG.random(300))
    assert report.metrics["roc_auc"].value is None
    assert report.metrics["roc_auc"].reason == "the labels have one class only"
    assert report.metrics["accuracy"].value is not None
    assert of(["late"] * 300, RNG.random(300), kind="classification").state == "not measured"
    constant = of([5.5] * 300, RNG.random(300))
    assert (constant.metrics["r2"].value, constant.metrics["mae"].value is None) == (None, False)


@pytest.mark.parametrize(
    ("labels", "predictions", "reason"),
    [
        ([], [], "the window is empty"),
        ([None] * 3, [1, 0, 1], "label: every value is missing"),
        ([float("nan")] * 3, [0.1, 0.2, 0.3], "label: every value is missing"),
        ([1, 0, 1], [None] * 3, "prediction: every value is missing"),
        ([1.5, float("inf"), None], [float("inf"), 1.0, 1.0], "no row has both"),
        (["yes", "no", "yes"], [1, 0, 1], "no class in common"),
        ([pd.Timestamp("2026-01-01")] * 3, [1, 0, 1], "is not judged"),
        ([1.5, 2.5, 3.5], ["a", "b", "c"], "no class in common"),
        ([1, 0, 1], "prediction", "there is no column 'prediction'"),
    ],
)
def test_what_cannot_be_measured_is_a_state(labels: Any, predictions: Any, reason: str) -> None:
    report = of(labels, predictions, reference={"accuracy": 0.9})
    assert report.state == "not measured"
    assert reason in report.reason
    assert report.metrics == {}
    json.dumps(report.to_dict())
    assert len(report.to_frame()) == 0


def test_rows_that_cannot_be_judged_are_counted_by_cause() -> None:
    labels = [1.5, None, 2.5, float("inf"), 3.5]
    report = of(labels, [1.0, 1.0, float("nan"), 1.0, float("-inf")])
    assert report.left_out == {
        "missing label": 1, "missing prediction": 1, "infinite label": 1, "infinite prediction": 1,
    }  # fmt: skip
    assert report.judged == 1
    scores = of([0, 1, 1, 0], [0, 1, 1, 0], probabilities=[0.2, 1.7, 0.9, float("nan")])
    assert scores.left_out["no probability in [0, 1]"] == 1


@pytest.mark.parametrize("labels", [["0", "1"] * 150, [False, True] * 150, [0.0, 1.0] * 150])
def test_classes_meet_whatever_type_they_came_in(labels: Any) -> None:
    report = of(labels, [0, 1] * 150)
    assert report.metrics["accuracy"].value == 1.0
    assert report.metrics["accuracy"].low == pytest.approx(0.987, abs=0.001)


def test_columns_of_a_parquet_file_are_found_by_name(tmp_path: Path) -> None:
    labels, score = binary(400)
    pd.DataFrame({"late": labels, "prediction": score}).to_parquet(tmp_path / "window.parquet")
    report = performance(tmp_path / "window.parquet", "late", reference={"roc_auc": 0.5})
    assert report.state == "ok"
    assert report.to_frame().set_index("metric").loc["roc_auc", "state"] == "ok"


def test_a_profile_is_a_reference() -> None:
    labels, score = binary(3_000)
    profile = build_profile(pd.DataFrame({"x": score}), predictions=score, labels=labels)
    labels, score = binary(2_000)
    assert of(labels, score, reference=profile).state == "ok"
    assert of(labels, 1.0 - score, reference=profile).state == "worse"
    # One class only, in a window whose classes the profile knows.
    assert of([1] * 300, RNG.random(300), reference=profile).metrics["recall"].value is not None


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="kind"):
        of([1], [1], kind="ranking")
    with pytest.raises(ConfigError, match="confidence"):
        of([1], [1], confidence=95.0)
    with pytest.raises(DataError, match="2 labels for 1 rows"):
        performance(pd.DataFrame({"prediction": [1]}), [1, 0])
