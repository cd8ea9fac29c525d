"""Every command leaves its record, also one that was killed between acting and recording."""

from __future__ import annotations

import getpass
from typing import Any

import pytest

from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import StartFailed, StateWriteFailed
from mlflow_deploy.lifecycle import release, revisions
from mlflow_deploy.lifecycle.records.audit import audit
from mlflow_deploy.lifecycle.records.chain import HEAD, read_chain
from mlflow_deploy.lifecycle.records.moments import parse_moment
from mlflow_deploy.lifecycle.records.recorder import KILLED, TAKEN_OVER, Recorder, recorded
from mlflow_deploy.lifecycle.records.served import served_at
from tests.unit.lifecycle.conftest import quiet

CONFIG = {"gateway": "envoy"}
GATES = {"gates": {"results": [{"name": "approval", "evidence": {"approved_by": ["grace"]}}]}}


def told(place: Any) -> list[tuple[str, str, int, bool]]:
    """Action, outcome, revision, and whether a later command wrote it."""
    assert audit(place, "d1", mlflow=False).problems == ()
    return [(each.action, each.outcome, each.revision, bool(each.late)) for each in read_chain(place, "d1")]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the next commands end as if they were killed before they record what they did."""

    class Killed:
        def __enter__(self) -> None:
            self.finish = Recorder.finish
            monkeypatch.setattr(Recorder, "finish", lambda *_: None)

        def __exit__(self, *_: object) -> None:
            monkeypatch.setattr(Recorder, "finish", self.finish)

    return Killed()


def test_a_whole_life_and_the_next_under_the_same_name(place: Any, lines: list[str]) -> None:
    made = release.create(place, "d1", lines[0], config=CONFIG, evidence=GATES, progress=quiet)
    assert made["release"]["record"] == 1
    release.update(
        place, "d1", lines[1], config={"strategy": "canary", "canary_steps": "10,50", "step_seconds": 0,
        "analysis.min_requests": 1, "step_requests": 0}, progress=quiet,
    )  # fmt: skip
    release.set_traffic(place, "d1", {1: 30, 2: 70}, reason="half and half", progress=quiet)
    release.rollback(place, "d1", 1, progress=quiet)
    revisions.delete_revision(place, "d1", 2)
    release.delete(place, "d1")
    release.delete(place, "d1")
    release.create(place, "d1", lines[1], config=CONFIG, progress=quiet)
    assert told(place) == [
        ("create", "done", 1, False),
        ("update", "done", 2, False),
        ("traffic", "done", 0, False),
        ("rollback", "done", 1, False),
        ("delete-revision", "done", 2, False),
        ("delete", "done", 0, False),
        ("create", "done", 1, False),
    ]
    created, updated, traffic, *_, deleted, _ = read_chain(place, "d1")
    assert (created.requester, created.approvers) == (getpass.getuser(), ("grace",))
    assert created.evidence == GATES
    assert created.model.uri.endswith("/1")
    assert created.model.digest.startswith("sha256-")
    assert created.parity["format"] == "onnx"
    assert created.environment["mlflow-deploy"]
    assert [point.weights for point in updated.timeline] == [
        {1: 90, 2: 10},
        {1: 50, 2: 50},
        {2: 100},
        {2: 100},
    ]
    assert all(point.reason for point in updated.timeline)
    assert updated.rollout is not None
    assert {number: each.model[-2:] for number, each in updated.served.items()} == {1: "/1", 2: "/2"}
    assert traffic.reason == "half and half"
    assert (deleted.before, deleted.after) == ({1: 100}, {})
    assert served_at(place, "d1", parse_moment("now")).shares == {1: 100}


def test_a_failed_creation_and_a_failed_update_are_recorded(place: Any, lines: list[str]) -> None:
    place.broken.add(release.prepare(lines[1], parse_spec(CONFIG), quiet).digest)
    with pytest.raises(StartFailed):
        release.create(place, "d1", lines[1], config=CONFIG, progress=quiet)
    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)
    with pytest.raises(StartFailed):
        release.update(place, "d1", lines[1], evidence=GATES, progress=quiet)
    assert told(place) == [
        ("create", "rolled_back", 1, False),
        ("create", "done", 1, False),
        ("update", "rolled_back", 2, False),
    ]
    failed, _, updated = read_chain(place, "d1")
    assert "did not become ready" in failed.reason
    assert failed.timeline == ()
    assert updated.approvers == ("grace",)
    assert updated.model.uri.endswith("/2")


def test_commands_killed_before_they_recorded_are_told_by_the_next(
    place: Any, lines: list[str], killed: Any
) -> None:
    with killed:
        release.create(place, "d1", lines[0], config=CONFIG, evidence=GATES, progress=quiet)
        assert place.read_archive("d1", HEAD) == {}
    release.set_traffic(place, "d1", {1: 100}, progress=quiet)
    assert told(place) == [("create", "done", 1, True), ("traffic", "done", 1, False)]
    first = read_chain(place, "d1")[0]
    assert (first.late, first.approvers) == (KILLED, ("grace",))
    with killed:
        release.delete(place, "d1")
    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)
    assert told(place)[2:] == [("delete", "done", 0, True), ("create", "done", 1, False)]


def test_a_creation_killed_half_way_is_told_by_the_next(
    place: Any, lines: list[str], killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.broken.add(release.prepare(lines[1], parse_spec(CONFIG), quiet).digest)
    with killed, monkeypatch.context() as patch:
        patch.setattr(place, "remove", lambda _name: None)
        with pytest.raises(StartFailed):
            release.create(place, "d1", lines[1], config=CONFIG, progress=quiet)
    release.reconcile(place, quiet)
    assert told(place) == [("create", "rolled_back", 1, True)]
    assert place.names() == []


def test_a_history_from_before_the_records_is_taken_over(place: Any, lines: list[str]) -> None:
    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)
    release.set_traffic(place, "d1", {1: 100}, progress=quiet)
    place._archive.clear()
    release.set_traffic(place, "d1", {1: 100}, progress=quiet)
    assert [each.late for each in read_chain(place, "d1")] == [TAKEN_OVER, TAKEN_OVER, ""]


def test_what_cannot_be_recorded_is_said_and_done_by_the_next(
    place: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)

    def full(name: str, key: str, document: bytes) -> None:
        raise StateWriteFailed(key, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, "write_archive", full)
        moved = release.set_traffic(place, "d1", {1: 100}, progress=quiet)
        assert "No space left" in moved["release"]["note"]
        assert "not recorded yet" in caplog.text
        with pytest.raises(StateWriteFailed):
            release.update(place, "d1", lines[1], progress=quiet)
        release.delete(place, "d1")
    assert place.names() == []


def test_two_commands_do_not_record_at_once(place: Any, lines: list[str]) -> None:
    from mlflow_deploy.errors import DeploymentBusy
    from mlflow_deploy.lifecycle.records.recorder import catch_up

    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)
    with recorded(place, "d1"):
        with pytest.raises(DeploymentBusy):
            release.set_traffic(place, "d1", {1: 100}, progress=quiet)
        assert "Another command" in catch_up(place, "d1")
