"""Every change of a deployment is in its history, with who, what, from what to what, and how it ended."""

from __future__ import annotations

import getpass
from typing import Any

import msgspec
import pytest

from mlflow_deploy.errors import DeploymentNotFound, StartFailed, UnsupportedConversion
from mlflow_deploy.lifecycle import release, revisions
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.rollout import journal
from mlflow_deploy.targets.base_records import DeploymentRecord
from tests.unit.lifecycle.conftest import quiet

CONFIG = {"gateway": "envoy"}


@pytest.fixture
def deployed(place: Any, lines: list[str]) -> Any:
    """Deployment d1 with revision 1, behind a gateway."""
    release.create(place, "d1", lines[0], config=CONFIG, progress=quiet)
    return place


def told(place: Any) -> list[tuple[str, str, int, dict[int, int], dict[int, int]]]:
    """What the history says in short."""
    return [
        (each["action"], each["outcome"], each["revision"], each["before"], each["after"])
        for each in history(place, "d1")
    ]


def test_a_whole_life(deployed: Any, lines: list[str]) -> None:
    release.update(deployed, "d1", lines[1], progress=quiet)
    release.set_traffic(deployed, "d1", {1: 30, 2: 70}, progress=quiet)
    release.rollback(deployed, "d1", 1, progress=quiet)
    revisions.delete_revision(deployed, "d1", 2)
    assert told(deployed) == [
        ("create", "done", 1, {}, {1: 100}),
        ("update", "started", 2, {1: 100}, {1: 100}),
        ("update", "done", 2, {1: 100}, {2: 100}),
        ("traffic", "done", 0, {2: 100}, {1: 30, 2: 70}),
        ("rollback", "done", 1, {1: 30, 2: 70}, {1: 100}),
        ("delete-revision", "done", 2, {1: 100}, {1: 100}),
    ]
    changes = history(deployed, "d1")
    assert [each["number"] for each in changes] == [1, 2, 3, 4, 5, 6]
    assert {each["by"] for each in changes} == {getpass.getuser()}
    assert changes[2]["model"].startswith("file:///")
    assert changes[2]["model"].endswith("/2")


def test_who_is_the_user_of_the_tracking_server(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    release.set_traffic(deployed, "d1", {1: 100}, progress=quiet)
    assert history(deployed, "d1")[-1]["by"] == "ada"


def test_a_candidate_that_does_not_start_is_rolled_back_with_the_reason(
    deployed: Any, lines: list[str]
) -> None:
    from mlflow_deploy.config import parse_spec

    deployed.broken.add(release.prepare(lines[1], parse_spec(CONFIG), quiet).digest)
    with pytest.raises(StartFailed):
        release.update(deployed, "d1", lines[1], progress=quiet)
    assert told(deployed)[1:] == [
        ("update", "started", 2, {1: 100}, {1: 100}),
        ("update", "rolled_back", 2, {1: 100}, {1: 100}),
    ]
    assert "did not become ready" in history(deployed, "d1")[-1]["reason"]
    described = release.describe(deployed, deployed.require("d1"))
    assert described["status"] == "ready"
    assert described["last_update"] == "rolled_back"
    assert described["detail"].startswith("rolled_back: the update to revision 2 (file:///")
    release.update(deployed, "d1", lines[2], progress=quiet)
    described = release.describe(deployed, deployed.require("d1"))
    assert (described["last_update"], described["detail"], described["revision"]) == ("done", "", 2)


def test_a_model_that_cannot_be_converted_is_a_failed_update(deployed: Any, lines: list[str]) -> None:
    config = {"format": "tflite"}
    with pytest.raises(UnsupportedConversion):
        release.update(deployed, "d1", lines[1], config=config, progress=quiet)
    last = history(deployed, "d1")[-1]
    assert (last["action"], last["outcome"], last["revision"]) == ("update", "rolled_back", 0)
    assert "cannot be converted to tflite" in last["reason"]


def test_a_killed_update_is_told_by_the_next_command(
    deployed: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a command that was killed after it announced its candidate."""
    record = deployed.require("d1")
    candidate = msgspec.structs.replace(record.revisions[0], number=2)
    killed = msgspec.structs.replace(record, revisions=(*record.revisions, candidate), candidate=2)
    killed = journal.noted(killed, "update", "started", revision=candidate)
    deployed.write_record(killed)
    release.reconcile(deployed, quiet)
    last = history(deployed, "d1")[-1]
    assert (last["action"], last["outcome"], last["revision"]) == ("update", "rolled_back", 2)
    assert last["reason"] == "the command that ran it was killed"


def test_only_the_latest_changes_are_kept_and_long_reasons_are_cut(deployed: Any) -> None:
    record: DeploymentRecord = deployed.require("d1")
    for _ in range(150):
        record = journal.noted(record, "traffic", "done", reason="x" * 10_000)
    assert len(record.history) == journal.KEPT
    assert [record.history[0].number, record.history[-1].number] == [52, 151]
    # Small enough for a label or an annotation, whatever happened.
    assert len(msgspec.json.encode(record)) < 100_000


def test_there_is_no_history_without_a_deployment(place: Any) -> None:
    with pytest.raises(DeploymentNotFound):
        history(place, "d1")
