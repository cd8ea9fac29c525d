"""What a job may not do itself: it is lent to one command at a time, done once, and tried again."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from mlflow_deploy.monitoring.actions import work_off
from mlflow_deploy.monitoring.alert_state import read_state
from mlflow_deploy.monitoring.claims import Settled, claim, settle, wait_for_work
from mlflow_deploy.monitoring.hand_over import mark, waiting
from mlflow_deploy.monitoring.landing import land
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.base_monitor import order_path
from tests.unit.monitoring.monitored import order
from tests.unit.monitoring.test_actions import Desk, result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder whose monitor, in a container, wants a rollback since second 0."""
    order(tmp_path, profile=False, **{"monitor.action.drift": "rollback", "monitor.action.after_windows": 1})
    given = read_order(tmp_path)
    assert given is not None
    order_path(tmp_path).write_bytes(msgspec.json.encode(msgspec.structs.replace(given, target="docker")))
    desk = Desk(tmp_path, drift="rollback", after_windows=1)
    desk.see(result(1, "alert"))
    work_off(tmp_path, "flights", desk.alert, desk.action, act=None, now=lambda: 0.0)
    return tmp_path


def test_an_action_is_lent_to_one_owner_and_settled_once(data: Path) -> None:
    (asked,) = claim(data, "here", now=1.0)
    assert (asked.action, asked.phase, asked.revision) == ("rollback", "do", 1)
    assert claim(data, "there", now=2.0) == []
    assert claim(data, "here", now=3.0) == [asked], "the same owner, after a kill"
    assert claim(data, "there", now=1000.0) == [asked], "its owner never came back"
    done = Settled(id=asked.id, phase="do", told="rolled back")
    assert settle(data, [done], now=1001.0) == 1
    assert settle(data, [done], now=1002.0) == 0
    (note,) = claim(data, "here", now=1003.0)
    assert (note.phase, note.detail, note.failed) == ("note", "rolled back", False)
    settle(data, [Settled(id=note.id, phase="note")], now=1004.0)
    assert claim(data, "here", now=1005.0) == []
    assert read_state(data).actions[0].state == "done"


def test_what_cannot_be_done_now_is_tried_again_and_given_up_at_last(data: Path) -> None:
    now = 0.0
    for attempt in range(5):
        (asked,) = claim(data, "here", now=now)
        assert asked.phase == "do", attempt
        settle(data, [Settled(id=asked.id, phase="do", error="busy")], now=now)
        assert claim(data, "here", now=now) == [], "not before its time"
        now += 1000
    (note,) = claim(data, "here", now=now)
    assert (note.phase, note.detail, note.failed) == ("note", "busy", True)


def test_waiting_ends_when_there_is_something_to_do(data: Path) -> None:
    assert wait_for_work(data, "here", 60.0) == {"actions": True, "unlogged": ""}
    (asked,) = claim(data, "there")
    assert wait_for_work(data, "here", 0.0) == {"actions": False, "unlogged": ""}
    settle(data, [Settled(id=asked.id, phase="do", error="busy")])
    (data / "monitor" / "unlogged").write_text("no server")
    assert wait_for_work(data, "here", 60.0, results=True) == {"actions": False, "unlogged": "no server"}


def test_a_job_that_acts_itself_lends_nothing(data: Path) -> None:
    given = read_order(data)
    assert given is not None
    order_path(data).write_bytes(msgspec.json.encode(msgspec.structs.replace(given, target="local")))
    assert claim(data, "here") == []
    assert not wait_for_work(data, "here", 0.0)["actions"]


def test_results_that_a_command_logs_are_left_alone_by_others(data: Path) -> None:
    store = ResultStore(data)
    assert store.commit(result(1, "ok"))
    (data / "monitor" / "unlogged").write_text("no server")
    (handed,) = waiting(data).results
    assert waiting(data).results == [], "another command"
    assert land(data).problem == "a command on another machine logs them now"
    marks = [[handed.revision, handed.kind, handed.start, handed.number, "run-1"]]
    assert mark(data, json.loads(json.dumps(marks))) == 1
    assert [each.run_id for each in store.results()] == ["run-1"]
    assert wait_for_work(data, "here", 0.0)["unlogged"] == ""
