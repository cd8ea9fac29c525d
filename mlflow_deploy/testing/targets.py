"""TargetContract: what every target must do, whatever it runs revisions on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
import pytest
import requests

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeploymentBusy, DeploymentNotFound, PortInUse, StartFailed, Unsupported
from mlflow_deploy.rollout.recording import PATH, Recording
from mlflow_deploy.serving.recorder import Order
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord

_TIME = "2026-01-01T00:00:00+00:00"


def revision_of(bundle: Bundle, number: int) -> RevisionRecord:
    """A revision record that runs `bundle` with default settings, but without monitors."""
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
        spec={"ready_seconds": 60.0, "monitor": {"kinds": []}},
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


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)


def _check_copies(target: Target, record: DeploymentRecord) -> None:
    """Ask a real deployment, whose revision 2 gets copies of everything, and look at what both have seen."""
    recording = Recording(target)
    recording.read(record, 1, 2)
    # Each worker learns within a moment that it shall record.
    time.sleep(0.5)
    body = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
    answers = [requests.post(f"{target.url(record)}/invocations", json=body, timeout=10) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-mlflow-deploy-revision"] for answer in answers} == {"1"}
    assert {answer.json()["predictions"][0] for answer in answers} == {2.0}
    seen: dict[int, dict[str, object]] = {1: {}, 2: {}}

    def all_are_recorded() -> bool:
        for number, records in recording.read(record, 1, 2).items():
            seen[number] |= {each.id: msgspec.json.decode(each.answer)["predictions"] for each in records}
        return len(seen[1]) == len(seen[2]) == len(answers)

    _wait(all_are_recorded, 20.0)
    assert seen[1] == {answer.headers["x-request-id"]: [2.0] for answer in answers}
    assert seen[2] == {each: [3.0] for each in seen[1]}
    stats = target.stats(record)
    assert [stats[number].requests for number in (1, 2)] == [len(answers)] * 2
    recording.stop(record, 1, 2)


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

    def test_apply_refuses_copies_where_there_is_no_gateway(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = msgspec.structs.replace(record_of(target, "d1", bundles), mirror={2: 100})
        with pytest.raises(Unsupported):
            target.apply(record, dict(enumerate(bundles, 1)))

    def test_copies_go_to_the_mirror_under_the_same_ids_and_only_the_others_answer(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = msgspec.structs.replace(
            record_of(target, "d1", bundles), gateway="envoy", mirror={2: 100}, replicas={1: 2}
        )
        target.write_record(record)
        for revision, bundle in zip(record.revisions, bundles, strict=True):
            target.start(record, revision, bundle)
        target.apply(record, dict(enumerate(bundles, 1)))
        assert [target.status(record, number).state for number in (1, 2)] == ["ready", "ready"]
        if Capability.DURABLE in target.capabilities:
            _check_copies(target, record)
        moved = msgspec.structs.replace(record, mirror={}, replicas={})
        target.write_record(moved)
        target.apply(moved, {1: bundles[0]})
        assert target.status(moved, 1).state == "ready"
        assert target.status(moved, 2).state == "stopped"
        assert target.ask(moved, 2, PATH, msgspec.json.encode(Order(1.0))) == {}

    def test_replicas_and_former_revisions_run_as_many_as_asked(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        if reason := target.lacks_gateway():
            pytest.skip(reason)
        record = msgspec.structs.replace(record_of(target, "d1", bundles), gateway="envoy")
        first, second = record.revisions
        second = msgspec.structs.replace(second, spec={**second.spec, "keep_revisions": 1, "replicas": 2})
        record = msgspec.structs.replace(record, revisions=(first, second))
        target.write_record(record)
        target.start(record, first, bundles[0])
        target.apply(record, {1: bundles[0]})
        target.start(record, second, bundles[1])
        moved = msgspec.structs.replace(record, weights={2: 100}, previous=(1,))
        for now in (moved, msgspec.structs.replace(moved, replicas={2: 1}), moved):
            target.write_record(now)
            target.apply(now, {2: bundles[1]})
            assert (target.status(now, 2).state, target.status(now, 2).detail) == ("ready", "")
            assert target.status(now, 1).state == "ready"
        last = msgspec.structs.replace(moved, previous=())
        target.write_record(last)
        target.apply(last, {2: bundles[1]})
        assert target.status(last, 1).state == "stopped"
        assert target.status(last, 2).state == "ready"
        target.remove("d1")

    def test_monitors_come_with_a_revision_and_go_with_its_deployment(
        self, target: Target, bundles: Sequence[Bundle]
    ) -> None:
        record = record_of(target, "d1", bundles[:1])
        target.write_record(record)
        target.start(record, record.revisions[0], bundles[0])
        target.apply(record, {1: bundles[0]})
        assert target.monitor_state(record) == "off"
        if Capability.MONITORS not in target.capabilities:
            with pytest.raises(Unsupported):
                target.ask_monitor(record, ["status"])
            return
        watched = msgspec.structs.replace(
            record.revisions[0], spec={"ready_seconds": 60.0}, created_at=datetime.now(UTC).isoformat()
        )
        record = msgspec.structs.replace(record, revisions=(watched,))
        target.write_record(record)
        target.apply(record, {1: bundles[0]})
        assert target.monitor_state(record) == "running"
        found: list[dict[str, object]] = []
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            # A container takes its order up when it goes round.
            found = msgspec.json.decode(target.ask_monitor(record, ["status"]))
        assert [(each["revision"], each["kind"]) for each in found] == [(1, "drift"), (1, "performance")]
        target.apply(
            msgspec.structs.replace(record, revisions=(record_of(target, "d1", bundles).revisions[0],)),
            {1: bundles[0]},
        )
        assert target.monitor_state(record) != "running"
        target.remove("d1")
        assert target.names() == []

    def test_the_archive_outlives_its_deployment(self, target: Target, bundles: Sequence[Bundle]) -> None:
        target.write_record(record_of(target, "d1", bundles))
        assert target.read_archive("d1") == {}
        target.write_archive("d1", "release-00000001", '{"by": "größer"}'.encode())
        target.write_archive("d1", "head", b"1")
        target.write_archive("d1", "head", b"2")
        target.write_archive("d2", "head", b"3")
        target.remove("d1")
        assert target.names() == []
        assert target.orphan_names() == []
        assert target.read_archive("d1", "head", "missing") == {"head": b"2"}
        assert target.read_archive("d1", "head") == {"head": b"2"}
        assert sorted(target.read_archive("d1")) == ["head", "release-00000001"]
        assert target.read_archive("d1")["release-00000001"].decode() == '{"by": "größer"}'
        assert target.archive_names() == ["d1", "d2"]

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
