"""On real rows with 30 columns: few false alarms, planted changes found; relations, segments, the page."""

from __future__ import annotations

import datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring import (
    ReferenceProfile,
    build_profile,
    build_segment_profiles,
    detect_drift,
    detect_segment_drift,
)
from tests.unit.monitoring.planted import CHANGES, Change, planted, quiet_windows, wide_flights

SPLITS, WINDOWS = 4, 50
Split = tuple[ReferenceProfile, list[pd.DataFrame]]


@pytest.fixture(scope="module")
def splits() -> list[Split]:
    """Profiles of random references and windows drawn from the other rows."""
    rows = wide_flights()
    return [
        (build_profile(reference), windows) for reference, windows in quiet_windows(rows, SPLITS, WINDOWS)
    ]


@pytest.mark.slow
def test_at_most_two_percent_of_200_windows_without_a_change_alarm(splits: list[Split]) -> None:
    reports = [detect_drift(profile, window) for profile, windows in splits for window in windows]
    assert len(reports) == 200
    assert [report.reason for report in reports if report.drifted][4:] == []


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_planted_changes_are_found_in_at_least_95_percent(splits: list[Split], change: Change) -> None:
    found = [
        detect_drift(profile, rows).columns[name].drifted
        for profile, windows in splits
        for rows, name in planted(change, windows[:22])
    ]
    assert len(found) == 88
    assert np.mean(found) >= 0.95


def test_a_broken_relation_is_drift_although_each_column_looks_the_same(splits: list[Split]) -> None:
    profile, windows = splits[0]
    shuffled = windows[0].assign(dewp=windows[0]["dewp"].sample(frac=1.0, random_state=1).to_numpy())
    report = detect_drift(profile, shuffled)
    assert not any(column.drifted for column in report.columns.values())
    assert report.drifted
    assert report.multivariate is not None
    assert report.multivariate.drifted
    assert "do not move together" in report.reason
    quiet = detect_drift(profile, windows[0]).multivariate
    assert quiet is not None
    assert not quiet.drifted
    without = detect_drift(profile, windows[0].drop(columns="dewp")).multivariate
    assert without is not None
    assert "not compared, because these columns cannot be: dewp" in without.reason


def test_a_segment_is_compared_with_itself(splits: list[Split]) -> None:
    _, windows = splits[0]
    before, after = pd.concat(windows[:10]), pd.concat(windows[10:15], ignore_index=True)
    profiles = build_segment_profiles(before, "origin")
    assert set(profiles) == {"JFK", "EWR", "LGA"}
    quiet = detect_segment_drift(profiles, after, "origin")
    assert (quiet.drifted, quiet.unknown_rows, quiet.vanished) == (False, 0, ())
    after.loc[after["origin"] == "JFK", "humid"] += 10.0
    after.loc[after["origin"] == "EWR", "origin"] = "SWF"
    report = detect_segment_drift(profiles, after, "origin")
    assert report.segments["JFK"].columns["humid"].drifted
    assert report.reason == "1 of 2 segments drifted: JFK"
    assert report.vanished == ("EWR",)
    assert report.unknown_rows == (after["origin"] == "SWF").sum()
    with pytest.raises(DataError, match="no column 'gate'"):
        detect_segment_drift(profiles, after, "gate")
    with pytest.raises(DataError, match="cannot name segments"):
        build_segment_profiles(before, "temp")


def test_the_previous_window_can_be_the_reference(splits: list[Split]) -> None:
    _, windows = splits[0]
    assert not detect_drift(build_profile(windows[0]), windows[1]).drifted
    later = windows[1].assign(temp=windows[1]["temp"] + 10.0)
    moved = detect_drift(build_profile(windows[0]), later)
    assert [name for name, column in moved.columns.items() if column.drifted] == ["temp"]
    assert not detect_drift(build_profile(later), windows[2].assign(temp=windows[2]["temp"] + 10.0)).drifted


def test_the_page_shows_what_moved_and_loads_nothing(splits: list[Split]) -> None:
    profile, windows = splits[0]
    report = detect_drift(profile, windows[0].assign(temp=60.0, **{"<b>new": 1}))
    html = report.to_html(title="Flights", note="<14:00>")
    HTMLParser().feed(html)
    assert html.index("temp: drifted") < html.index("humid: ok")
    assert html.count("<svg") == 30
    assert "&lt;14:00&gt;" in html
    assert "<b>" not in html
    assert "http" not in html
    assert "src=" not in html


def test_times_of_another_zone_or_going_back_are_a_state_and_no_error() -> None:
    at = pd.date_range("2013-11-03", periods=400, freq="min", tz="UTC")
    profile = build_profile(pd.DataFrame({"at": at, "x": np.arange(400)}))
    moved = pd.DataFrame({"at": at[::-1].tz_convert("America/New_York"), "x": np.arange(400)})
    report = detect_drift(profile, moved)
    assert not report.drifted
    assert report.columns["at"].state == "not compared"
    dates = moved.assign(at=[datetime.date(2013, 1, 1)] * 400)
    assert detect_drift(profile, dates).columns["at"].state == "not compared"
