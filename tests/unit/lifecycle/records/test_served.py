"""What served at a moment, whatever zone it is given in."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.records.chain import append
from mlflow_deploy.lifecycle.records.moments import parse_moment
from mlflow_deploy.lifecycle.records.record import Served
from mlflow_deploy.lifecycle.records.served import served_at
from mlflow_deploy.targets.base_records import TrafficPoint
from mlflow_deploy.targets.memory import MemoryTarget
from tests.unit.lifecycle.records.test_chain import draft


@pytest.fixture
def told() -> MemoryTarget:
    """Revision 1 at 1 o'clock, a canary of revision 2 from 2 to 3, deleted at 5 and again alive at 6."""
    target = MemoryTarget()
    served = {number: Served(model=f"models:/m/{number}", bundle=f"sha256-{number}") for number in (1, 2)}
    steps = (
        TrafficPoint(at="2026-03-03T02:00:00+00:00", weights={1: 90, 2: 10}, reason="passed: 0 errors"),
        TrafficPoint(at="2026-03-03T02:30:00+00:00", weights={1: 50, 2: 50}, copies={1: 5}),
        TrafficPoint(at="2026-03-03T03:00:00+00:00", weights={2: 100}, reason="update done"),
    )
    append(target, "d1", draft(1, action="create", served=served))
    append(target, "d1", draft(2, timeline=steps, served=served, approvers=("grace",)))
    gone = (TrafficPoint(at="2026-03-03T05:00:00+00:00", weights={}, reason="the deployment was deleted"),)
    append(target, "d1", draft(5, change=0, action="delete", timeline=gone))
    append(target, "d1", draft(6, change=1, action="create", life="2026-03-03T06:00:00+00:00"))
    return target


@pytest.mark.parametrize(
    ("at", "shares", "record"),
    [
        ("2026-03-03T00:59:59Z", {}, 0),
        ("2026-03-03T01:00:00Z", {1: 100}, 1),
        ("2026-03-03T02:59:59+01:00", {1: 100}, 1),
        ("2026-03-03T03:00:00+01:00", {1: 90, 2: 10}, 2),
        ("2026-03-03 03:45 Europe/Berlin", {1: 50, 2: 50}, 2),
        ("2026-03-02 22:00 America/New_York", {2: 100}, 2),
        ("2026-03-03T05:00:01Z", {}, 3),
        ("2030-01-01T00:00Z", {6: 100}, 4),
    ],
)
def test_shares_at_a_moment(told: MemoryTarget, at: str, shares: dict[int, int], record: int) -> None:
    found = served_at(told, "d1", parse_moment(at))
    assert (found.shares, found.record) == (shares, record)


def test_it_says_what_and_who(told: MemoryTarget) -> None:
    found = served_at(told, "d1", parse_moment("2026-03-03T02:10:00Z"))
    assert {number: each.model for number, each in found.served.items()} == {
        1: "models:/m/1",
        2: "models:/m/2",
    }
    assert (found.requester, found.approvers, found.reason) == ("ada", ("grace",), "passed: 0 errors")
    assert found.since == "2026-03-03T02:00:00+00:00"
    assert served_at(told, "d1", parse_moment("2026-03-03T02:40:00Z")).copies == {1: 5}
    assert "before the first release" in served_at(told, "d1", parse_moment("2020-01-01T00:00Z")).reason


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-03-03T12:00", "has no time zone"),
        ("2026-03-03", "has no time zone"),
        ("yesterday", "is no time"),
        ("2026-03-03 12:00 Europe/Nowhere", "no time zone 'Europe/Nowhere'"),
        ("2026-03-03T12:00+01:00 Europe/Berlin", "an offset and the name"),
        ("2026-10-25 02:30 Europe/Berlin", "came twice"),
        ("2026-03-29 02:30 Europe/Berlin", "came never"),
    ],
)
def test_a_moment_that_could_be_several_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_moment(text)


def test_now_is_a_moment() -> None:
    moment: Any = parse_moment("now")
    assert moment.utcoffset().total_seconds() == 0
