"""Drift that is there is found, drift that is not is not, and odd windows are states and not errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy.errors import ConfigError, DataError
from mlflow_deploy.monitoring import DriftReport, ReferenceProfile, build_profile, detect_drift

RNG = np.random.default_rng(42)
REFERENCE_ROWS = 20_000
WINDOW_ROWS = 2_000


@pytest.fixture(scope="module")
def profile(winter: pd.DataFrame) -> ReferenceProfile:
    """Of 20,000 winter flights."""
    return build_profile(winter.head(REFERENCE_ROWS))


@pytest.fixture
def window(winter: pd.DataFrame) -> pd.DataFrame:
    """2,000 other winter flights."""
    return winter.iloc[REFERENCE_ROWS : REFERENCE_ROWS + WINDOW_ROWS].reset_index(drop=True)


def moved(report: DriftReport) -> list[str]:
    """Names of the columns that drifted."""
    return [name for name, column in report.columns.items() if column.drifted]


def test_july_is_not_february(flights: pd.DataFrame, features: list[str]) -> None:
    february = build_profile(flights.loc[flights["month"] == 2, features])
    report = detect_drift(february, flights.loc[flights["month"] == 7, features])
    assert report.drifted
    assert report.enough_data
    assert {"temp", "dewp"} <= set(moved(report))
    assert "origin" not in moved(report)
    temp = report.columns["temp"]
    assert temp.statistic is not None
    assert temp.statistic > 0.9
    assert "mean 35.69 -> 81.62" in temp.reason
    assert "out of the reference's range" in temp.reason


@pytest.mark.parametrize("rows", [200, 1_000, 5_000])
def test_random_splits_of_real_flights_give_few_false_alarms(winter: pd.DataFrame, rows: int) -> None:
    alarms = 0
    for _ in range(60):
        order = RNG.permutation(len(winter))
        reference = build_profile(winter.iloc[order[:10_000]])
        alarms += detect_drift(reference, winter.iloc[order[10_000 : 10_000 + rows]]).drifted
    # At most 1 % by design; more than three of 60 would happen once in 300 runs of that.
    assert alarms <= 3


def test_tests_alone_keep_the_false_alarm_rate_when_any_effect_counts(winter: pd.DataFrame) -> None:
    alarms = 0
    for _ in range(100):
        order = RNG.permutation(len(winter))
        reference = build_profile(winter.iloc[order[:5_000]])
        report = detect_drift(
            reference,
            winter.iloc[order[5_000:7_000]],
            false_alarm_rate=0.1,
            min_distance=0.0,
            min_share=0.0,
        )
        alarms += report.drifted
    assert alarms <= 20


def shift_mean(rows: pd.DataFrame) -> None:
    rows["humid"] += 0.25 * rows["humid"].std()


def scale(rows: pd.DataFrame) -> None:
    rows["dewp"] = rows["dewp"].mean() + 1.3 * (rows["dewp"] - rows["dewp"].mean())


def lose_values(rows: pd.DataFrame) -> None:
    rows.loc[RNG.random(len(rows)) < 0.05, "temp"] = np.nan


def add_category(rows: pd.DataFrame) -> None:
    rows.loc[RNG.random(len(rows)) < 0.05, "carrier"] = "ZZ"


@pytest.mark.parametrize(
    ("change", "column"),
    [(shift_mean, "humid"), (scale, "dewp"), (lose_values, "temp"), (add_category, "carrier")],
)
def test_planted_changes_are_found_in_their_column_only(
    winter: pd.DataFrame,
    profile: ReferenceProfile,
    change: Callable[[pd.DataFrame], None],
    column: str,
) -> None:
    found = 0
    for start in range(REFERENCE_ROWS, REFERENCE_ROWS + 12 * WINDOW_ROWS, WINDOW_ROWS):
        rows = winter.iloc[start : start + WINDOW_ROWS].copy()
        change(rows)
        found += moved(detect_drift(profile, rows)) == [column]
    assert found == 12


def test_a_corrupted_column_is_found_in_500_rows(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    rows = window.head(500).assign(distance=-1)
    report = detect_drift(profile, rows)
    assert moved(report) == ["distance"]
    assert "out of the reference's range 0.0% -> 100.0%" in report.columns["distance"].reason


def test_one_outlier_hides_nothing_and_alarms_nobody(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    quiet = window.copy()
    quiet.loc[0, "humid"] = 1e6
    assert not detect_drift(profile, quiet).drifted
    shifted = window.copy()
    shifted["humid"] += 0.5 * shifted["humid"].std()
    before = detect_drift(profile, shifted).columns["humid"]
    shifted.loc[0, "humid"] = 1e6
    after = detect_drift(profile, shifted).columns["humid"]
    assert before.drifted
    assert after.drifted
    assert after.statistic == pytest.approx(before.statistic, abs=0.01)


def test_half_a_column_missing_is_drift(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    window.loc[::2, "temp"] = np.nan
    report = detect_drift(profile, window)
    assert moved(report) == ["temp"]
    assert "missing values 0.1% -> 50.0%" in report.columns["temp"].reason
    assert report.columns["temp"].missing == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rows", [0, 1, 20, 199])
def test_a_small_window_has_no_verdict(window: pd.DataFrame, profile: ReferenceProfile, rows: int) -> None:
    report = detect_drift(profile, window.head(rows).assign(temp=500.0))
    assert not report.enough_data
    assert not report.drifted
    assert not moved(report)
    assert f"the window has {rows} rows, 200 are needed" in report.reason
    assert {column.state for column in report.columns.values()} == {"not enough data"}
    assert len(report.to_frame()) == len(profile.columns)


def test_a_small_reference_gives_no_verdict(window: pd.DataFrame) -> None:
    report = detect_drift(build_profile(window.head(50)), window)
    assert not report.enough_data
    assert "the reference has 50 rows" in report.reason
    assert not detect_drift(build_profile(window.head(0)), window, min_rows=0).enough_data


def test_a_window_of_another_shape_is_reported_column_by_column(
    window: pd.DataFrame, profile: ReferenceProfile
) -> None:
    rows = window.drop(columns="origin").assign(
        carrier=7,
        distance="far",
        temp=np.nan,
        dest=None,
        extra=1,
        humid=np.where(np.arange(len(window)) % 2, np.inf, window["humid"]),
        day_of_week=3,
    )
    report = detect_drift(profile, rows)
    states = {name: column.state for name, column in report.columns.items()}
    assert states["origin"] == "vanished"
    assert states["carrier"] == states["distance"] == "changed type"
    assert states["extra"] == "new column"
    assert {states[name] for name in ("temp", "dest", "humid", "day_of_week")} == {"drifted"}
    assert "every value is missing" in report.columns["temp"].reason
    assert "every value is missing" in report.columns["dest"].reason
    assert "1000 infinite values" in report.columns["humid"].reason
    assert "int64 to string" in report.columns["distance"].reason.replace("large_", "")
    assert states["pressure"] == "ok"
    assert report.columns["extra"].drifted is False
    json.dumps(report.to_dict(), allow_nan=False)


def test_empty_and_constant_reference_columns_are_compared() -> None:
    rows = 1_000
    reference = build_profile(
        pd.DataFrame(
            {"none": [None] * rows, "nan": [np.nan] * rows, "one": [1.0] * rows, "word": ["a"] * rows}
        )
    )
    same = pd.DataFrame(
        {"none": [None] * rows, "nan": [np.nan] * rows, "one": [1.0] * rows, "word": ["a"] * rows}
    )
    quiet = detect_drift(reference, same)
    assert not quiet.drifted
    assert "the reference has one value only" in quiet.columns["one"].reason
    other = pd.DataFrame(
        {"none": ["x"] * rows, "nan": [2.0] * rows, "one": [1.5] * rows, "word": ["b"] * rows}
    )
    report = detect_drift(reference, other)
    assert moved(report) == ["none", "nan", "one", "word"]
    assert "the reference has no value" in report.columns["none"].reason
    assert "the reference has no value" not in report.columns["word"].reason


def test_times_and_lists_are_named_and_not_compared() -> None:
    rows = pd.DataFrame({"at": pd.date_range("2013-01-01", periods=500, tz="UTC"), "list": [[1]] * 500})
    report = detect_drift(build_profile(rows), rows)
    assert {column.state for column in report.columns.values()} == {"not compared"}
    assert "timestamp" in report.columns["at"].reason
    assert report.reason == "none of 0 columns drifted"


def test_integers_as_floats_are_no_changed_type(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    assert not detect_drift(profile, window.astype({"distance": "float64"})).drifted


def test_parquet_and_arrow_windows_give_the_same_report(
    window: pd.DataFrame, profile: ReferenceProfile, tmp_path: Path
) -> None:
    table = pa.Table.from_pandas(window, preserve_index=False)
    pq.write_table(table.slice(0, 900), tmp_path / "a.parquet")
    pq.write_table(table.slice(900), tmp_path / "b.parquet")
    expected = detect_drift(profile, window).to_dict()
    assert detect_drift(profile, table).to_dict() == expected
    assert detect_drift(profile, tmp_path).to_dict() == expected


def test_segments_of_different_shape_are_one_window(window: pd.DataFrame, tmp_path: Path) -> None:
    reference = build_profile(window)
    window.head(1_000).to_parquet(tmp_path / "a.parquet")
    window.tail(1_000).drop(columns="temp").to_parquet(tmp_path / "b.parquet")
    report = detect_drift(reference, tmp_path)
    assert moved(report) == ["temp"]
    assert report.columns["temp"].missing == pytest.approx(0.5, abs=0.01)


def test_a_profile_read_from_json_judges_alike(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    again = ReferenceProfile.from_json(profile.to_json())
    assert detect_drift(again, window).to_dict() == detect_drift(profile, window).to_dict()


def test_prediction_drift_is_a_column_of_its_own(window: pd.DataFrame) -> None:
    scores = RNG.random(len(window))
    reference = build_profile(window, predictions=scores)
    assert not detect_drift(reference, window, predictions=RNG.random(len(window))).drifted
    report = detect_drift(reference, window, predictions=scores**2)
    assert moved(report) == ["prediction"]
    with pytest.raises(DataError, match="1 predictions for 2000 rows"):
        detect_drift(reference, window, predictions=[0.5])
    with pytest.raises(ConfigError, match="reference profile has none"):
        detect_drift(build_profile(window), window, predictions=scores)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_false_alarm_rate_is_refused(
    window: pd.DataFrame, profile: ReferenceProfile, rate: float
) -> None:
    with pytest.raises(ConfigError, match="false_alarm_rate"):
        detect_drift(profile, window, false_alarm_rate=rate)


def test_the_table_has_what_moved_most_first(window: pd.DataFrame, profile: ReferenceProfile) -> None:
    table = detect_drift(
        profile, window.assign(temp=window["temp"] + 100, humid=window["humid"] * 1.2)
    ).to_frame()
    assert table["column"].head(2).tolist() == ["temp", "humid"]
    assert table["drifted"].tolist() == [True, True, *[False] * 14]
