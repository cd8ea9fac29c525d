"""The flight-delay project: its data, its model and what the run records."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

from tests.conftest import load_project

data = load_project("flight_delay", "data")["data"]


@pytest.fixture(scope="module")
def march() -> pd.DataFrame:
    """March, in which clocks were put forward."""
    return data.load_flights([3])


def test_rows_have_features_label_time_and_key(march: pd.DataFrame) -> None:
    assert list(march.columns) == ["flight_id", "time", *data.FEATURES, data.LABEL]
    assert march["flight_id"].is_unique
    assert march["time"].is_monotonic_increasing
    assert str(march["time"].dt.tz) == "UTC"
    assert len(march) + march.attrs["not_arrived"] == 28_834
    assert march["late"].isin([0, 1]).all()


def test_a_known_flight_is_as_in_the_source() -> None:
    flight = data.load_flights([1]).set_index("flight_id").loc["2013-01-01-UA1545-EWR"]
    assert flight["time"] == pd.Timestamp("2013-01-01T05:15-05:00")
    assert (flight["sched_dep_minute"], flight["sched_arr_minute"]) == (5 * 60 + 15, 8 * 60 + 19)
    assert (flight["dest"], flight["distance"], flight["day_of_week"]) == ("IAH", 1400, 1)
    assert flight["temp"] == pytest.approx(39.02)
    assert flight["late"] == 0  # it arrived 11 minutes late


def test_scheduled_minutes_are_new_yorks_clock_through_the_change_of_clocks(march: pd.DataFrame) -> None:
    local = march["time"].dt.tz_convert("America/New_York")
    assert (local.dt.hour * 60 + local.dt.minute == march["sched_dep_minute"]).all()
    assert (local.dt.dayofweek == march["day_of_week"]).all()
    assert march["sched_arr_minute"].between(0, 1439).all()


def test_only_weather_is_ever_missing(march: pd.DataFrame) -> None:
    missing = march.isna().mean()
    assert (missing.drop(list(data.WEATHER)) == 0).all()
    assert missing["wind_gust"] > 0.5
    assert missing["temp"] < 0.01
    assert {str(march[name].dtype) for name in data.INTEGERS} == {"int64"}


def test_the_split_is_by_days_in_new_york(march: pd.DataFrame) -> None:
    before, last = data.split_last_days(march, 14)
    assert len(before) + len(last) == len(march)
    assert last["time"].min() >= pd.Timestamp("2013-03-18T00:00-04:00") > before["time"].max()
    with pytest.raises(ValueError, match="leave 0 rows before"):
        data.split_last_days(march, 40)


@pytest.mark.parametrize("months", [[], [0], [13], [1, 20]])
def test_impossible_months_are_refused(months: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers from 1 to 12"):
        data.load_flights(months)


def test_the_model_is_better_than_chance(flight_model: Any) -> None:
    metrics = mlflow.get_run(flight_model.run_id).data.metrics
    assert {name: metrics[name] for name in flight_model.metrics} == pytest.approx(flight_model.metrics)
    assert metrics["roc_auc"] > 0.6
    base = metrics["base_rate"]
    assert metrics["brier"] < base * (1 - base)
    assert (metrics["rows_training"], metrics["rows_validation"]) == (37_521, 12_488)


def test_the_signature_has_text_integers_and_floats_that_may_miss(flight_model: Any) -> None:
    signature = mlflow.models.get_model_info(flight_model.model_uri).signature
    columns = {column.name: (column.type.name, column.required) for column in signature.inputs}
    assert tuple(columns) == data.FEATURES
    assert {columns[name] for name in data.STRINGS} == {("string", True)}
    assert {columns[name] for name in data.INTEGERS} == {("long", True)}
    assert {columns[name] for name in data.WEATHER} == {("double", False)}


def test_the_registered_version_answers_its_own_example(flight_model: Any) -> None:
    model = mlflow.pyfunc.load_model(f"models:/flight-delay/{flight_model.model_version}")
    example = model.input_example
    assert example["wind_gust"].isna().any()
    assert example["wind_gust"].notna().any()
    assert set(model.predict(example)) <= {0, 1}


def test_the_validation_rows_are_reachable_from_the_run(flight_model: Any) -> None:
    run = mlflow.get_run(flight_model.run_id)
    inputs = {used.tags[0].value: used for used in run.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation"}
    uri = json.loads(inputs["validation"].dataset.source)["uri"]
    assert uri == f"runs:/{run.info.run_id}/validation/rows.parquet"
    rows = pd.read_parquet(mlflow.artifacts.download_artifacts(uri))
    assert list(rows.columns) == [*data.FEATURES, data.LABEL]
    assert len(rows) == 12_488
    assert rows[data.LABEL].mean() == pytest.approx(flight_model.metrics["base_rate"])
    source = load_project("flight_delay", "source")["source"]
    again = source.RunArtifactSource.from_dict(source.RunArtifactSource(uri).to_dict()).load()
    pd.testing.assert_frame_equal(pd.read_parquet(again), rows)


def test_the_monitor_finds_july_in_the_validation_rows_of_february(flight_model: Any) -> None:
    monitor = load_project("flight_delay", "monitor")["monitor"]
    report = monitor.monitor(f"models:/flight-delay/{flight_model.model_version}", [7])
    assert report.drifted
    assert {"temp", "dewp", "prediction"} <= set(report.columns)
    assert report.columns["temp"].drifted
    assert not report.columns["origin"].drifted
    runs = mlflow.search_runs(
        experiment_names=["tests"], filter_string="tags.drift = 'alert'", output_format="list"
    )
    assert runs[0].data.metrics["drift_distance/temp"] == pytest.approx(report.columns["temp"].statistic)
    table = mlflow.load_table(monitor.TABLE, run_ids=[runs[0].info.run_id])
    assert set(table["column"]) == set(report.columns)


def test_a_model_without_validation_rows_is_refused_by_name(tracking: str) -> None:
    monitor = load_project("flight_delay", "monitor")["monitor"]
    with mlflow.start_run():
        model = DummyClassifier().fit([[0], [1]], [0, 1])
        info = mlflow.sklearn.log_model(model, name="bare", pip_requirements=["scikit-learn"])
    with pytest.raises(LookupError, match="no dataset input with the context 'validation'"):
        monitor.validation_rows(info.model_uri)
