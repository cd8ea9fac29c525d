"""What replicas are together, what a record asks of its gateway, and the merged log of several processes."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import DeploymentSpec, parse_spec
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.gateway.spec import Mirror, Sticky
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.gateway_spec import gateway_spec, traffic_of
from mlflow_deploy.targets.local_logs import read_logs
from mlflow_deploy.targets.local_ports import PortBook
from mlflow_deploy.targets.memory import MemoryTarget
from mlflow_deploy.targets.replicas import ReplicaStatus, check_gateway_settings, combined
from mlflow_deploy.testing.targets import record_of
from tests import bundles as made

UP = ReplicaStatus(ready=True, failed=False, pid=7, since=50.0, detail="")
DOWN = ReplicaStatus(ready=False, failed=False, pid=8, since=90.0, detail="it is started again")
DEAD = ReplicaStatus(ready=False, failed=True, pid=0, since=10.0, detail="its process ended")


@pytest.mark.parametrize(
    ("replicas", "answers", "state", "detail"),
    [
        ([UP, UP], True, "ready", ""),
        ([DOWN, UP], True, "ready", "1 of 2 replicas are ready"),
        ([UP, UP], False, "unavailable", "its gateway does not answer"),
        ([DEAD, DOWN], True, "unavailable", "its process ended"),
        ([DEAD, DEAD], True, "failed", "its process ended"),
    ],
)
def test_status_of_a_revision(replicas: list[ReplicaStatus], answers: bool, state: str, detail: str) -> None:
    status = combined(3, 2, replicas, gateway_answers=answers)
    assert (status.number, status.state, status.detail) == (3, state, detail)
    assert status.since == max(replica.since for replica in replicas)
    assert status.pid == (7 if UP in replicas else 0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"replicas": 2}, "2 replicas"),
        ({"keep_revisions": 1}, "keep_revisions"),
        ({"envoy.threads": 3}, "envoy.threads"),
    ],
)
def test_settings_that_need_a_gateway(setting: dict[str, int], named: str) -> None:
    spec = parse_spec(setting)
    check_gateway_settings("d1", spec, "envoy")
    with pytest.raises(ConfigError, match=named):
        check_gateway_settings("d1", spec, "none")
    check_gateway_settings("d1", DeploymentSpec(), "none")


@pytest.fixture
def record(tmp_path: Path) -> DeploymentRecord:
    """Revision 1 with settings of the gateway, and revision 2."""
    bundles: list[Bundle] = [made.adder_bundle(tmp_path / "store", tmp_path, value) for value in (1.0, 2.0)]
    record = record_of(MemoryTarget(), "d1", bundles)
    spec = parse_spec(
        {
            "envoy.sticky": "cookie:who",
            "envoy.sticky_seconds": "60",
            "envoy.rate_limit": "9",
            "envoy.access_log": "true",
            "envoy.retry_predictions": "false",
            "envoy.idle_timeout_seconds": "11",
            "serving.deadline_seconds": "3",
            "keep_revisions": "1",
        }
    ).model_dump(mode="json")
    first = msgspec.structs.replace(record.revisions[0], spec=spec)
    return msgspec.structs.replace(record, gateway="envoy", revisions=(first, record.revisions[1]))


def test_gateway_by_the_settings_of_the_stable_revision(record: DeploymentRecord) -> None:
    spec = gateway_spec(record, "127.0.0.1", 8500, {})
    assert spec.sticky == Sticky(by="cookie", name="who", cookie_seconds=60)
    assert (spec.rate_limit, spec.access_log, spec.repeatable, spec.idle_timeout_seconds) == (9, "-", (), 11)
    assert spec.request_timeout_seconds == 8
    moved = msgspec.structs.replace(record, weights={2: 100}, mirror={1: 25})
    spec = gateway_spec(moved, "127.0.0.1", 8500, {})
    assert spec.sticky is None
    assert "/invocations" in spec.repeatable
    assert spec.request_timeout_seconds == 65
    assert traffic_of(moved).mirror == Mirror(1, 25)


def test_former_revisions_are_kept_as_the_stable_one_asks(record: DeploymentRecord) -> None:
    former = msgspec.structs.replace(record, previous=(7, 2))
    assert former.kept == [2]
    assert msgspec.structs.replace(former, gateway="none").kept == []
    assert msgspec.structs.replace(former, weights={1: 50, 2: 50}).kept == []
    assert msgspec.structs.replace(former, weights={2: 100}, previous=(1,)).kept == []


def test_log_of_replicas_is_merged_by_time_and_followed_over_rotation(tmp_path: Path) -> None:
    one, two = tmp_path / "r1-1.log", tmp_path / "r1-2.log"
    (tmp_path / "r1-1.log.1").write_text('{"time": "2026-01-01T00:00:01", "n": 1}\n')
    one.write_text('{"time": "2026-01-01T00:00:03", "n": 3}\nTraceback of 3\n')
    two.write_text('{"time": "2026-01-01T00:00:02", "n": 2}\nunfinished')
    lines = list(read_logs([one, two], follow=False))
    assert [line[-5:] for line in lines] == ['n": 1}'[-5:], 'n": 2}'[-5:], 'n": 3}'[-5:], " of 3", "ished"]
    followed = read_logs([one], follow=True)
    assert len(list(itertools.islice(followed, 3))) == 3
    with one.open("a") as file:
        file.write("four\n")
    assert next(followed) == "four"
    one.rename(tmp_path / "r1-1.log.9")
    one.write_text("five\n")
    assert next(followed) == "five"
    followed.close()  # type: ignore[attr-defined]


def test_ports_of_forgotten_revisions_are_free_again(tmp_path: Path) -> None:
    book = PortBook(tmp_path)
    public, first = book.port("d1", "public", "127.0.0.1"), book.port("d1", "r1-1", "127.0.0.1")
    second = book.port("d1", "r12-1-grpc", "127.0.0.1")
    book.forget("d1", {12})
    assert book.port("d2", "public", "127.0.0.1") == first
    assert book.port("d1", "r12-1-grpc", "127.0.0.1") == second
    assert book.port("d1", "public", "127.0.0.1") == public
