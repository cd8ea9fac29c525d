"""Estimates without labels meet the truth when only the features moved, and are known to miss it otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, roc_auc_score

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.monitoring import (
    ReferenceProfile,
    build_profile,
    check_estimate,
    estimate_performance,
    performance,
)
from tests.conftest import load_project


@dataclass(frozen=True)
class Scored:
    """Flights with the model's scores, and the profile of others of the same months."""

    profile: ReferenceProfile
    rows: pd.DataFrame
    features: list[str]


@pytest.fixture(scope="module")
def scored(flights: pd.DataFrame, features: list[str]) -> Scored:
    """A third of the flights trains the model, a third is the reference, a third is left."""
    from threadpoolctl import threadpool_limits

    model = load_project("flight_delay", "train")["train"].make_model(0.1, 40)
    rows = flights.sample(frac=1.0, random_state=3, ignore_index=True)
    train, reference, rest = (rows.iloc[part::3] for part in range(3))
    with threadpool_limits(1, user_api="openmp"):
        model.fit(train[features], train["late"])
        scores = model.predict_proba(reference[features])[:, 1]
        rest = rest.assign(prediction=model.predict_proba(rest[features])[:, 1])
    profile = build_profile(reference[features], predictions=scores, labels=reference["late"])
    return Scored(profile=profile, rows=rest, features=features)


@pytest.mark.parametrize(
    "query",
    [
        "sched_dep_minute > 1020",
        "sched_dep_minute < 540",
        "carrier == 'EV'",
        "visib < 5",
        "distance > 1500",
        "temp > 80",
    ],
)
def test_roc_auc_is_within_three_hundredths_on_shifted_flights(scored: Scored, query: str) -> None:
    window = scored.rows.query(query)
    truth = roc_auc_score(window["late"], window["prediction"])
    estimate = estimate_performance(scored.profile, window[[*scored.features, "prediction"]])
    assert estimate.state == "estimated"
    assert estimate.value == pytest.approx(truth, abs=0.03)
    report = performance(window, "late")
    for metric in ("accuracy", "f1", "log_loss", "brier"):
        found = estimate_performance(scored.profile, window, metric)
        assert found.value == pytest.approx(report.metrics[metric].value, abs=0.04)
        assert found.low < found.value < found.high


def test_the_shift_is_one_that_changes_the_quality(scored: Scored) -> None:
    evening, morning = (scored.rows.query(f"sched_dep_minute {side}") for side in ("> 1020", "< 540"))
    values = [estimate_performance(scored.profile, window, "accuracy").value for window in (evening, morning)]
    assert values[1] - values[0] > 0.1


def test_a_concept_that_flips_is_missed_and_found_out_by_labels(scored: Scored) -> None:
    flipped = np.random.default_rng(0).random(len(scored.rows)) < 0.3
    late = np.where(flipped, 1 - scored.rows["late"], scored.rows["late"])
    estimate = estimate_performance(scored.profile, scored.rows)
    truth = performance(scored.rows, late)
    # The features are the same, so nothing without labels can see it: the estimate is known to be wrong here.
    assert estimate.value - truth.metrics["roc_auc"].value > 0.1
    assert "no concept change" in estimate.assumption
    check = check_estimate(estimate, truth)
    assert check.agrees is False
    assert "no longer follow" in check.reason
    assert check_estimate(estimate, performance(scored.rows, "late")).agrees


def test_classes_without_scores_have_their_accuracy_estimated(scored: Scored) -> None:
    half = scored.rows.iloc[::2]
    profile = build_profile(half[scored.features], predictions=half["prediction"] >= 0.5, labels=half["late"])
    window = scored.rows.iloc[1::2].query("sched_dep_minute > 1020")
    window = window.assign(prediction=(window["prediction"] >= 0.5).astype(int))
    estimate = estimate_performance(profile, window, "accuracy")
    assert estimate.method == "direct loss"
    assert estimate.value == pytest.approx((window["prediction"] == window["late"]).mean(), abs=0.02)
    assert abs(estimate.value - estimate.reference) > 0.03
    assert "cannot be estimated" in estimate_performance(profile, window, "roc_auc").reason


def test_the_error_of_a_regression_is_estimated(flights: pd.DataFrame) -> None:
    rows = flights[["temp", "dewp", "humid", "wind_speed", "month"]].dropna().sample(12_000, random_state=1)
    winter = rows[rows["month"] <= 3].assign(month=0)
    model = LinearRegression().fit(winter[["temp", "humid"]].iloc[::2], winter["dewp"].iloc[::2])
    reference = winter.iloc[1::2]
    features = ["temp", "humid", "wind_speed"]
    fit, window = reference.iloc[::2], reference.iloc[1::2].query("humid < 45")
    profile = build_profile(
        fit[features], predictions=model.predict(fit[["temp", "humid"]]), labels=fit["dewp"].to_numpy()
    )
    guess = model.predict(window[["temp", "humid"]])
    estimate = estimate_performance(profile, window[features], "mae", predictions=guess)
    truth = mean_absolute_error(window["dewp"], guess)
    assert estimate.value == pytest.approx(truth, rel=0.1)
    rmse = estimate_performance(profile, window[features], "rmse", predictions=guess)
    assert rmse.value > estimate.value


def test_the_profile_stays_small_and_survives_json(scored: Scored) -> None:
    text = scored.profile.to_json()
    assert len(text) < 60_000
    again = ReferenceProfile.from_json(text)
    assert again == scored.profile
    assert estimate_performance(again, scored.rows) == estimate_performance(scored.profile, scored.rows)
    assert len(again.quality.scores) <= 40
    assert list(again.quality.chances) == sorted(again.quality.chances)


def test_what_cannot_be_estimated_is_a_state(scored: Scored) -> None:
    window = scored.rows[[*scored.features, "prediction"]]
    for data, state, reason in (
        (window.head(0), "not enough data", "0 rows, 200 are needed"),
        (window.head(100), "not enough data", "100 rows, 200 are needed"),
        (window.assign(prediction=np.nan), "not estimated", "no prediction is a probability"),
        (window.assign(prediction=np.inf), "not estimated", "no prediction is a probability"),
        (window.assign(prediction="late"), "not estimated", "the predictions are"),
        (window.drop(columns="prediction"), "not estimated", "there is no column 'prediction'"),
    ):
        estimate = estimate_performance(scored.profile, data)
        assert (estimate.state, estimate.value) == (state, None)
        assert reason in estimate.reason
    bare = replace(scored.profile, quality=None)
    assert "has no predictions with labels" in estimate_performance(bare, window).reason
    with pytest.raises(ConfigError, match="'ndcg' cannot be estimated"):
        estimate_performance(scored.profile, window, "ndcg")


def test_values_that_the_reference_never_had_are_said_to_be_guessed(scored: Scored) -> None:
    window = scored.rows.assign(temp=500.0)
    estimate = estimate_performance(scored.profile, window)
    assert estimate.unfamiliar == 1.0
    assert "values the reference hardly had" in estimate.reason
    assert estimate_performance(scored.profile, scored.rows).unfamiliar < 0.05
    gone = estimate_performance(scored.profile, scored.rows.drop(columns="temp"))
    assert (gone.state, gone.unfamiliar) == ("estimated", 1.0)


def test_a_reference_with_one_class_is_kept_and_estimates_nothing() -> None:
    data = load_diabetes(as_frame=True).data
    profile = build_profile(data, predictions=[0.3] * len(data), labels=[0] * len(data))
    estimate = estimate_performance(profile, data.assign(prediction=0.3))
    assert (estimate.state, profile.quality.rows) == ("not estimated", len(data))
