"""Single revisions are added without traffic and removed only when they have none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeploymentBusy, RevisionInUse, RevisionNotFound
from mlflow_deploy.lifecycle import release, revisions
from mlflow_deploy.targets.base_records import RolloutRecord
from tests.unit.lifecycle.conftest import quiet


@pytest.fixture
def two(place: Any, lines: list[str]) -> Any:
    """Deployment d1 with revisions 1 and 2; 2 has the traffic."""
    release.create(place, "d1", lines[0], config={"gateway": "envoy"}, progress=quiet)
    release.update(place, "d1", lines[1], progress=quiet)
    return place


def test_a_revision_without_traffic_goes_and_its_bundle_stays(two: Any, lines: list[str]) -> None:
    bundle = two.require("d1").revision(1).bundle
    record = revisions.delete_revision(two, "d1", 1)
    assert [each.number for each in record.revisions] == [2]
    assert record.previous == ()
    assert (state_home() / "bundles" / bundle).is_dir()
    assert release.describe(two, record)["traffic"] == {"2": 100}
    with pytest.raises(RevisionNotFound, match="has no revision 1"):
        revisions.delete_revision(two, "d1", 1)


def test_a_number_never_comes_again(two: Any, lines: list[str]) -> None:
    release.rollback(two, "d1", progress=quiet)
    revisions.delete_revision(two, "d1", 2)
    assert release.update(two, "d1", lines[2], progress=quiet)["revision"] == 3


def test_a_revision_with_traffic_stays(two: Any) -> None:
    release.set_traffic(two, "d1", {1: 10, 2: 90}, progress=quiet)
    for number, weight in ((1, 10), (2, 90)):
        with pytest.raises(RevisionInUse, match=f"it gets {weight} % of the requests"):
            revisions.delete_revision(two, "d1", number)
    assert len(two.require("d1").revisions) == 2


def test_both_sides_of_a_running_rollout_stay(two: Any) -> None:
    record = two.require("d1")
    rollout = RolloutRecord(strategy="canary", stable=2, candidate=1, started_at="")
    with two.lock("d1"):
        with pytest.raises(DeploymentBusy):
            revisions.delete_revision(two, "d1", 1)
        two.write_record(msgspec.structs.replace(record, rollout=rollout))
        for number in (1, 2):
            with pytest.raises(RevisionInUse, match="a rollout from revision 2 to 1 goes on"):
                revisions.delete_revision(two, "d1", number)


def test_an_added_revision_was_tried_and_has_no_traffic(two: Any, lines: list[str]) -> None:
    record, revision = revisions.add(two, "d1", lines[2], label="green", progress=quiet)
    assert (revision.number, revision.label) == (3, "green")
    assert record.weights == {2: 100}
    assert two.status(record, 3).state == "stopped"
    assert list(two.logs("d1", 3, follow=False)) == ["ready", "stopped"]
