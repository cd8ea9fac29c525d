"""The demo's quiet period is no part of what it is compared with, and its inbox holds what was delivered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mlflow_deploy.config import parse_spec
from mlflow_deploy.demo import picture, replay, story
from mlflow_deploy.monitoring import notify
from mlflow_deploy.monitoring.alert_state import Message, Notice
from tests.conftest import load_project


def test_no_flight_is_reference_and_traffic() -> None:
    data = load_project("flight_delay", "data")["data"]
    reference, periods = story.flights_of(data)
    quiet = periods["late February"]
    assert not set(reference.index) & set(quiet.index)
    # Both are all of the fortnight that training leaves out.
    every = data.load_flights([2])
    days = every["time"].dt.tz_convert(data.TIMEZONE).dt.day
    assert len(reference) + len(quiet) == (days > 28 - story.VALIDATION_DAYS).sum()
    assert quiet["time"].dt.tz_convert(data.TIMEZONE).dt.strftime("%m-%d").between("02-15", "02-28").all()
    assert [len(rows) for rows in periods.values()] == [replay.ROWS] * 3
    assert all(rows["time"].is_monotonic_increasing for rows in periods.values())


def test_inbox_holds_each_message_of_a_revision_once(tmp_path: Path) -> None:
    inbox = tmp_path / "a folder" / "alerts.jsonl"
    inbox.parent.mkdir()
    alert = parse_spec(replay.config(tmp_path / "reference.parquet", inbox)).monitor.alert
    first, other = _message("m1", revision=2), _message("m2", revision=1)
    for message in (first, first, other):
        notify.send("command", message, alert, now=time.time())
    with inbox.open("ab") as file:
        file.write(b'{"id": "m3", "half')
    (found,) = replay.messages(inbox, 2)
    assert (found["id"], found["status"]) == ("m1", "firing")
    assert found["text"].startswith("[ALERT] flights revision 2, drift: columns moved")


def test_the_picture_tells_the_numbers_and_escapes_names() -> None:
    period = {
        "name": "July", "drift": "alert", "drifted": 2, "columns": 17, "moved": {"<temp>": 0.99},
        "estimated": 0.8056, "measured": 0.696, "expected": 0.7728, "performance": "alert",
    }  # fmt: skip
    found: dict[str, Any] = {"reference_rows": 6488, "periods": [period], "alerts": ["[ALERT] d, drift: 2"]}
    full = {
        "version": "2", "revision": 3, "metrics": {"accuracy": 0.759}, "gates": [("smoke", "passed", "")],
        "steps": [(20, "undecided", "")], "answered": 5650, "failed": [],
    }  # fmt: skip
    for more in ({}, {"full": None}, {"full": full}):
        words = [each.text for each in ElementTree.fromstring(picture.months({**found, **more})).iter()]
        assert {"<temp> 0.99", "0.806 estimated", "0.696 measured", "2 of 17 columns"} <= set(words)
        assert ("as revision 3" in words) == bool(more.get("full"))


def _message(identity: str, *, revision: int) -> Message:
    notice = Notice(
        status="firing",
        level="alert",
        revision=revision,
        monitor="drift",
        topic="verdict",
        summary="columns moved",
        window_start="2026-01-01T00:00:00+00:00",
        window_end="2026-01-01T01:00:00+00:00",
    )
    return Message(id=identity, deployment="flights", at="2026-01-01T01:00:01+00:00", notices=(notice,))
