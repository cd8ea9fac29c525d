"""TargetContract: what every target must do, whatever it runs revisions on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeploymentBusy, DeploymentNotFound, PortInUse, StartFailed, Unsupported
from mlflow_deploy.targets.base import DeploymentRecord, RevisionRecord, Target

_TIME = "2026-01-01T00:00:00+00:00"


def revision_of(bundle: Bundle, number: int) -> RevisionRecord:
    """A revision record that runs `bundle` with default settings."""
    return RevisionRecord(
        number=number,
        bundle=bundle.digest,
        format=bundle.manifest.format,
        model_uri=bundle.manifest.model.uri,
        resolved_uri=bundle.manifest.model.uri,
        model_name="",
        model_version="",
        fallback="",
        parity="",
        spec={"ready_seconds": 60.0},
        created_at=_TIME,
    )


def record_of(target: Target, name: str, bundles: Sequence[Bundle]) -> DeploymentRecord:
    """A record with an address of its own and one revision for each bundle; the first has all traffic."""
    return DeploymentRecord(
        name=name,
        phase="ready",
        host="127.0.0.1",
        port=target.reserve_address(name, "127.0.0.1", None),
        revisions=tuple(revision_of(bundle, number) for number, bundle in enumerate(bundles, 1)),
        weights={1: 100},
        created_at=_TIME,
        updated_at=_TIME,
    )


class TargetContract:
    """Subclass it with the fixtures `target` (empty), `bundles` (two that start) and `broken_bundle`."""

    def test_unknown_deployment_is_not_found_and_the_nearest_is_named(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        assert target.read_record("flights") is None
        target.write_record(record_of(target, "flights", bundles))
        with pytest.raises(DeploymentNotFound, match="did you mean 'flights'"):
            target.require("flight")

    def test_record_is_read_as_written(self, target: Target, bundles: Sequence[Bundle]) -> None:
        record = record_of(target, "d1", bundles)
        target.write_record(record)
        assert target.read_record("d1") == record
        assert target.require("d1") == record
        assert target.records() == [record]

    def test_unfinished_deployment_is_not_shown(self, target: Target, bundles: Sequence[Bundle]) -> None:
        record = msgspec.structs.replace(record_of(target, "d1", bundles), phase="creating")
        target.write_record(record)
        assert target.names() == ["d1"]
        assert target.records() == []
        with pytest.raises(DeploymentNotFound):
            target.require("d1")

    def test_lock_keeps_others_out_until_it_is_left(self, target: Target) -> None:
        with target.lock("d1"):
            with pytest.raises(DeploymentBusy), target.lock("d1"):
                pytest.fail("the lock was taken twice")
            with target.lock("d2"):
                pass
        with target.lock("d1"):
            pass

    def test_addresses_are_distinct_and_taken_ones_refused(self, target: Target) -> None:
        first = target.reserve_address("d1", "127.0.0.1", None)
        second = target.reserve_address("d2", "127.0.0.1", None)
        assert first != second
        with pytest.raises(PortInUse, match=str(first)):
            target.reserve_address("d3", "127.0.0.1", first)

    def test_started_revision_is_ready_and_stopped_one_is_stopped(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = record_of(target, "d1", bundles)
        target.write_record(record)
        assert target.status(record, 1).state == "stopped"
        assert target.start(record, record.revision(1), bundles[0]).state == "ready"
        assert target.status(record, 1).state == "ready"
        assert list(target.logs("d1", 1, follow=False))
        target.stop("d1", 1)
        target.stop("d1", 1)
        assert target.status(record, 1).state == "stopped"

    def test_broken_revision_fails_and_leaves_nothing_running(
        self, target: Target, broken_bundle: Bundle
    ) -> None:
        record = record_of(target, "d1", [broken_bundle])
        target.write_record(record)
        with pytest.raises(StartFailed, match="Revision 1 of deployment 'd1'"):
            target.start(record, record.revision(1), broken_bundle)
        assert target.status(record, 1).state == "stopped"

    def test_apply_makes_what_runs_match_the_record(self, target: Target, bundles: Sequence[Bundle]) -> None:
        record = record_of(target, "d1", bundles)
        target.write_record(record)
        target.start(record, record.revision(1), bundles[0])
        target.start(record, record.revision(2), bundles[1])
        moved = msgspec.structs.replace(record, weights={2: 100})
        target.write_record(moved)
        for _ in range(2):
            target.apply(moved, {2: bundles[1]})
            assert target.status(moved, 1).state == "stopped"
            assert target.status(moved, 2).state == "ready"

    def test_apply_refuses_a_split_where_there_is_no_gateway(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = msgspec.structs.replace(record_of(target, "d1", bundles), weights={1: 50, 2: 50})
        assert not target.can_split(record)
        with pytest.raises(Unsupported):
            target.apply(record, dict(enumerate(bundles, 1)))

    def test_remove_leaves_nothing_and_may_be_repeated(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = record_of(target, "d1", bundles)
        target.write_record(record)
        target.start(record, record.revision(1), bundles[0])
        target.remove("d1")
        target.remove("d1")
        assert target.names() == []
        assert target.read_record("d1") is None
        assert target.status(record, 1).state == "stopped"
        assert target.reserve_address("d1", record.host, record.port) == record.port
