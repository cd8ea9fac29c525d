"""The job judges every final window once, whatever is killed and whatever the rows are like."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy.monitoring import jobs
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.monitoring.jobs import backfill, run_due
from mlflow_deploy.monitoring.overview import overview, page_of
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from tests.unit.monitoring.monitored import START, capture, order, rows


def run(data: Path, until: float) -> list[WindowResult]:
    return run_due(data, now=START + timedelta(hours=until, minutes=5))


def one(results: list[WindowResult], kind: str, hour: int) -> WindowResult:
    start = (START + timedelta(hours=hour)).isoformat()
    (found,) = [each for each in results if each.kind == kind and each.start == start]
    return found


def test_quiet_hours_are_ok_and_a_shift_is_an_alert_with_its_columns(tmp_path: Path) -> None:
    order(tmp_path)
    for hour, shift in enumerate((0.0, 0.0, 1.0)):
        capture(tmp_path, rows(1000, hour, shift=shift)[0], f"a{hour}")
    results = run(tmp_path, 3)
    assert [one(results, "drift", hour).state for hour in range(3)] == ["ok", "ok", "alert"]
    moved = one(results, "drift", 2)
    assert moved.columns["x"]["drifted"] == 1.0
    assert moved.columns["z"]["drifted"] == 0.0
    assert moved.reasons[0].startswith("x: ")
    assert moved.values["drift.previous_share"] > 0
    assert "x" in page_of(tmp_path, 1, "drift", moved.start)["html"]
    estimated = one(results, "performance", 1)
    assert estimated.state == "not_enough_data"
    assert abs(estimated.values["estimate.roc_auc"] - estimated.values["reference.roc_auc"]) < 0.05


def test_every_window_is_judged_once_and_only_when_it_is_final(tmp_path: Path) -> None:
    order(tmp_path)
    capture(tmp_path, rows(300, 0)[0], "a")
    assert run_due(tmp_path, now=START + timedelta(hours=1)) == []
    assert {(each.kind, each.start) for each in run(tmp_path, 1)} == {
        ("drift", START.isoformat()),
        ("performance", START.isoformat()),
    }
    assert run(tmp_path, 1) == []
    # A downtime of four hours: all windows are caught up, in order, once.
    assert [each.start for each in run(tmp_path, 5) if each.kind == "drift"] == [
        (START + timedelta(hours=hour)).isoformat() for hour in range(1, 5)
    ]
    assert len(ResultStore(tmp_path).results()) == 10


def test_labels_that_come_later_make_a_second_result_that_supersedes_once(tmp_path: Path) -> None:
    order(tmp_path)
    table, labels = rows(1000, 0)
    capture(tmp_path, table, "a")
    run(tmp_path, 1)
    store = CaptureStore(tmp_path)
    store.add_labels(pa.table({"key": table["_request_id"][:600], "label": labels[:600]}), source="test")
    (again,) = run(tmp_path, 1)
    assert (again.kind, again.number, again.labels, again.state) == ("performance", 2, 600, "ok")
    assert again.values["estimate_agrees.roc_auc"] == 1.0
    assert run(tmp_path, 1) == []
    store.add_labels(pa.table({"key": table["_request_id"][600:], "label": 1 - labels[600:]}), source="test")
    (third,) = run(tmp_path, 1)
    assert (third.number, third.labels, third.state) == (3, 1000, "alert")
    results = ResultStore(tmp_path)
    assert [each.number for each in results.results(1, "performance")] == [3]
    assert [each.number for each in results.results(1, "performance", superseded=True)] == [1, 2, 3]


def test_labels_after_the_wait_change_nothing(tmp_path: Path) -> None:
    order(tmp_path, **{"monitor.label_wait": "1h"})
    table, labels = rows(300, 0)
    capture(tmp_path, table, "a")
    run(tmp_path, 1)
    CaptureStore(tmp_path).add_labels(pa.table({"key": table["_request_id"], "label": labels}), source="test")
    assert [each for each in run(tmp_path, 9) if each.number > 1] == []


def test_without_a_profile_the_first_rows_become_the_reference_and_the_result_says_so(tmp_path: Path) -> None:
    order(tmp_path, profile=False, **{"monitor.reference_rows": 1200, "monitor.drift.segment": "z"})
    for hour, shift in enumerate((0.0, 0.0, 0.0, 1.5)):
        capture(tmp_path, rows(1000, hour, shift=shift)[0], f"a{hour}")
    first = one(run(tmp_path, 1), "drift", 0)
    assert first.state == "no_reference"
    assert "1067 are there" in first.summary
    later = run(tmp_path, 4)
    assert one(later, "drift", 2).state == "ok"
    assert "the first 1200 captured rows" in one(later, "drift", 2).notes[0]
    assert one(later, "drift", 3).state == "alert"
    assert one(later, "drift", 3).values["drift.segments_drifted"] == 3.0


def test_windows_by_rows_and_kinds_that_are_refused(tmp_path: Path) -> None:
    order(tmp_path, **{"monitor.window": "400rows", "monitor.kinds": "drift"})
    capture(tmp_path, rows(1000, 0)[0], "a")
    results = run(tmp_path, 1)
    assert [(each.kind, each.rows) for each in results] == [("drift", 400)] * 2
    capture(tmp_path, rows(300, 1)[0], "b")
    assert [each.rows for each in run(tmp_path, 3)] == [400]


# --- odd rows ----------------------------------------------------------------------------------------------


def _without_values(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("x"), "x", pa.nulls(len(table), pa.float64()))


def _constant(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("x"), "x", pa.array(np.full(len(table), 7.0)))


def _text(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("x"), "x", pa.array(["n/a"] * len(table)))


def _infinite(table: pa.Table) -> pa.Table:
    values = table["x"].to_numpy().copy()
    values[::3] = np.inf
    return table.set_column(table.column_names.index("x"), "x", pa.array(values))


def _zoned(table: pa.Table) -> pa.Table:
    when = pa.array([START] * len(table), pa.timestamp("us", tz="Europe/Berlin"))
    return table.append_column("when", when)


def _times(table: pa.Table) -> pa.Table:
    when = pa.array([START] * len(table), pa.timestamp("us", tz="America/New_York"))
    return table.set_column(table.column_names.index("x"), "x", when)


def _one_answer(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.column_names.index("prediction"), "prediction", pa.array(np.ones(len(table), np.int64))
    )


ODD = {
    "a column without values": (_without_values, "alert", "x"),
    "a constant column": (_constant, "alert", "x"),
    "a column that vanished": (lambda table: table.drop_columns(["x"]), "alert", "not in the window"),
    "a column of another type": (_text, "alert", "x"),
    "infinite values": (_infinite, "alert", "inf"),
    "a new column with time zones": (_zoned, "ok", ""),
    "times with a zone for numbers": (_times, "alert", "x"),
    "one class only": (_one_answer, "alert", "prediction"),
    "few rows": (lambda table: table.slice(0, 20), "not_enough_data", "20"),
    "no rows": (lambda table: table.slice(0, 0), "not_enough_data", ""),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_rows_are_a_reported_state_and_the_next_window_is_judged(tmp_path: Path, case: str) -> None:
    change, state, words = ODD[case]
    order(tmp_path)
    table, labels = rows(1000, 0)
    capture(tmp_path, change(table), "a")
    capture(tmp_path, rows(1000, 1)[0], "b")
    CaptureStore(tmp_path).add_labels(
        pa.table({"key": table["_request_id"], "label": np.zeros_like(labels)}), source="one class"
    )
    results = run(tmp_path, 2)
    drift = one(results, "drift", 0)
    assert drift.state == state, drift
    assert words in " ".join((drift.summary, *drift.reasons))
    assert one(results, "drift", 1).state == "ok"
    assert one(results, "performance", 0).state in ("ok", "warning", "alert", "not_enough_data")
    assert "error" not in {each.state for each in results}


@pytest.mark.parametrize("case", [name for name, (_, state, _) in ODD.items() if state != "not_enough_data"])
def test_odd_rows_can_become_the_reference(tmp_path: Path, case: str) -> None:
    order(tmp_path, profile=False, **{"monitor.reference_rows": 500, "monitor.kinds": "drift"})
    capture(tmp_path, ODD[case][0](rows(500, 0)[0]), "a")
    for hour in (1, 2):
        capture(tmp_path, rows(500, hour)[0], f"b{hour}")
    results = run(tmp_path, 3)
    states = [one(results, "drift", hour).state for hour in (0, 1, 2)]
    assert states[0] == "ok"
    # Normal rows after odd ones are a change, but for columns of which the reference knows nothing.
    changed = not {"vanished", "zones", "zone"} & set(case.split())
    assert set(states[1:]) <= ({"warning", "alert"} if changed else {"ok", "alert"}), states
    assert "the first 500 captured rows" in " ".join(one(results, "drift", 1).notes)


def test_failed_requests_are_errors_and_no_missing_values(tmp_path: Path) -> None:
    order(tmp_path)
    table, _ = rows(500, 0)
    failed = table.slice(0, 100)
    for name in failed.column_names:
        if not name.startswith("_"):
            empty = pa.nulls(100, failed.schema.field(name).type)
            failed = failed.set_column(failed.column_names.index(name), name, empty)
    status = failed.column_names.index("_status")
    failed = failed.set_column(status, "_status", pa.array(np.full(100, 500), pa.int16()))
    capture(tmp_path, pa.concat_tables([failed, table.slice(100)]), "a")
    results = run(tmp_path, 1)
    assert one(results, "drift", 0).columns["x"]["missing_share"] == 0.0
    broken = one(results, "performance", 0)
    assert broken.state == "alert"
    assert broken.values["errors.share"] == pytest.approx(0.2)
    assert broken.values["traffic.requests"] == 500


def test_rows_of_a_clock_that_went_back_are_told_and_judged_on_demand(tmp_path: Path) -> None:
    order(tmp_path)
    capture(tmp_path, rows(500, 0)[0], "a")
    run(tmp_path, 1)
    capture(tmp_path, rows(200, 0, seed=1)[0], "late")
    capture(tmp_path, rows(500, 1)[0], "b")
    told = one(run(tmp_path, 2), "drift", 1)
    assert "200 rows of the window before" in " ".join(told.notes)
    redone = backfill(tmp_path, START, START + timedelta(hours=1), redo=True)
    assert {(each.kind, each.number, each.rows) for each in redone} == {
        ("drift", 2, 700), ("performance", 2, 700),
    }  # fmt: skip
    # The clock is behind the last window now: nothing is judged, and it is said.
    assert run(tmp_path, 0) == []
    entries = overview(tmp_path, now=START)
    assert "the clock went back" in " ".join(entries[0]["notes"])


def test_uncaptured_and_hashed_columns_are_no_drift(tmp_path: Path) -> None:
    order(tmp_path, **{"capture.exclude": "x"})
    capture(tmp_path, rows(500, 0)[0].drop_columns(["x"]), "a")
    assert one(run(tmp_path, 1), "drift", 0).state == "ok"


def test_a_damaged_profile_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    order(tmp_path)
    (tmp_path / "monitor" / "rev-1" / "profile.json").write_text("{}")
    capture(tmp_path, rows(300, 0)[0], "a")
    broken = one(run(tmp_path, 1), "drift", 0)
    assert broken.state == "error"
    assert "reference profile" in broken.summary


def test_an_alert_is_told_before_the_rest_of_a_backlog_is_judged(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = tmp_path / "tell.py"
    program.write_text(
        "import pathlib, sys\n"
        f"done = len(list(pathlib.Path({str(tmp_path)!r}).glob('monitor/rev-1/drift/[0-9]*.json')))\n"
        f"print(done, file=open({str(told)!r}, 'a'))\n"
    )
    order(
        tmp_path,
        **{
            "monitor.kinds": "drift",
            "monitor.window": "500rows",
            "monitor.grace_seconds": 0,
            "monitor.alert.command": f"{sys.executable} {program}",
            "monitor.alert.group_seconds": 0,
        },
    )
    capture(tmp_path, rows(3000, 0, shift=1.0)[0], "a")
    command = [sys.executable, "-m", "mlflow_deploy.monitoring.job", "round", str(tmp_path)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert told.read_text().split() == ["1"]
    assert [each.state for each in ResultStore(tmp_path).results()] == ["alert"] * 6


# --- kills -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    order(tmp_path, active=False, **{"capture.max_days": 0})
    for hour in range(12):
        capture(tmp_path, rows(400, hour)[0], f"a{hour}")
    command = [sys.executable, "-m", "mlflow_deploy.monitoring.job", "round", str(tmp_path)]
    killed = 0
    for wait in np.linspace(0.4, 1.6, 5):
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        killed += job.poll() is None
        job.kill()
        job.wait()
    assert killed
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = ResultStore(tmp_path).results(superseded=True)
    judged = [(each.kind, each.start, each.number) for each in found if each.rows]
    assert len(judged) == len(set(judged)) == 24
    assert {each.rows for each in found} == {400}
    assert not list((tmp_path / "monitor").rglob("*.trying"))


def test_a_window_that_kills_its_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order(tmp_path, **{"monitor.kinds": "drift"})
    capture(tmp_path, rows(300, 0)[0], "a")

    def dies(*_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_finding", dies)
        for _ in range(jobs.MAX_ATTEMPTS):
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, 1)
    (given_up,) = run(tmp_path, 1)
    assert given_up.state == "error"
    assert "without a result" in given_up.summary
