"""Windows are aligned, final only after their grace, and never hold a row twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mlflow_deploy.monitoring.windows import MAX_EMPTY, Micros, final_windows, micros

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(*seconds: float) -> list[Micros]:
    return [np.array([micros(NOON) + round(second * 1e6) for second in seconds], dtype=np.int64)]


def windows(window: str, times: list[Micros], until: float, *, active: bool = False, **more: object) -> list:
    given = {"since": NOON, "judged": {}} | more
    end = NOON + timedelta(seconds=until)
    return final_windows(window, times, until=end, active=active, **given)  # type: ignore[arg-type]


def test_time_windows_are_aligned_and_final_only_when_their_end_is_past() -> None:
    found = windows("10s", at(3, 12, 13, 29, 31), until=30)
    assert [(w.start.second, w.rows) for w in found] == [(0, 1), (10, 2), (20, 1)]
    assert [w.start.second for w in windows("10s", at(3, 12), until=19.999)] == [0]


def test_only_a_running_revision_has_windows_without_rows() -> None:
    assert [w.rows for w in windows("10s", at(25), until=30)] == [1]
    assert [w.rows for w in windows("10s", at(25), until=30, active=True)] == [0, 0, 1]


def test_judged_windows_are_not_due_again() -> None:
    done = NOON + timedelta(seconds=10)
    found = windows("10s", at(3, 12, 25), until=30, judged={done: done})
    assert [w.start.second for w in found] == [0, 20]


def test_long_downtime_leaves_out_old_windows_without_rows_but_none_with_rows() -> None:
    found = windows("1s", at(5.5), until=5000, active=True)
    assert len(found) == MAX_EMPTY + 1
    assert found[0].start == NOON + timedelta(seconds=5)


def test_a_clock_that_was_years_back_makes_one_window_not_millions() -> None:
    back = np.array([micros(datetime(1971, 1, 1, tzinfo=UTC))], dtype=np.int64)
    assert len(windows("5s", [back, *at(1)], until=10)) == 2


@pytest.mark.parametrize("count", [7, 12, 100])
def test_row_windows_follow_each_other_and_hold_every_row_once(count: int) -> None:
    generator = np.random.default_rng(count)
    times = np.sort(generator.integers(0, 60, 1000)) * 1_000_000 + micros(NOON)
    judged: dict[datetime, datetime] = {}
    seen = 0
    for until in (10, 25, 70):
        for window in windows(f"{count}rows", [times], until=until, judged=judged):
            assert window.rows >= count
            assert not judged or window.start == max(judged.values())
            judged[window.start] = window.end
            seen += window.rows
    inside = (times >= micros(min(judged))) & (times < micros(max(judged.values())))
    assert seen == int(inside.sum())
