"""Statistics per revision and the access log tell what was sent."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mlflow_deploy.gateway.spec import Traffic
from tests.integration.gateway.running import Load, backend, free_port, running, start, stop
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually


def test_statistics_equal_what_was_sent(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port, toys[2].port)]
    with running(tmp_path, backends, Traffic({1: 100, 2: 0})) as gateway:
        gateway.calls(17)
        for code, count in ((404, 3), (422, 1), (500, 2), (503, 1)):
            for _ in range(count):
                assert gateway.call(f"/status/{code}", X_Revision="2")[0] == code
        gateway.calls(5, X_Revision="2")
        stats = gateway.gateway.stats()
    one, two = stats[1], stats[2]
    assert (one.replicas, one.healthy, two.replicas, two.healthy) == (1, 1, 2, 2)
    assert (one.served.requests, one.served.succeeded) == (17, 17)
    assert (two.served.requests, two.served.succeeded) == (12, 5)
    assert (two.served.client_errors, two.served.server_errors) == (4, 3)
    assert one.served.retries == one.served.connect_failures == one.served.active == 0
    assert one.served.latency.count == 17
    assert one.mirrored.requests == two.mirrored.requests == 0


@pytest.mark.alone
def test_latency_and_requests_in_flight(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], Traffic({1: 100})) as gateway:
        gateway.calls(20)
        before = gateway.gateway.stats()[1].served
        assert before.p50_ms is not None
        assert before.p50_ms < 20
        with Load(gateway.port, clients=4, path="/slow/0.06"):
            eventually(lambda: gateway.gateway.stats()[1].served.active == 4)
            time.sleep(0.5)
        step = gateway.gateway.stats()[1].served.since(before)
        assert step.requests >= 16
        assert step.p50_ms is not None
        assert step.p99_ms is not None
        assert 59 <= step.p50_ms < 90
        assert step.p50_ms <= step.p99_ms < 300


def test_connection_failures_and_retries_are_counted(tmp_path: Path, toys: list[Toy]) -> None:
    port = free_port()
    dying = Toy("dying", port)
    with running(tmp_path, [backend(1, toys[0].port, port)], Traffic({1: 100})) as gateway:
        dying.close()
        gateway.calls(30)
        served = gateway.gateway.stats()[1].served
    assert (served.requests, served.succeeded) == (30, 30)
    assert served.connect_failures == served.retries > 0


def test_statistics_begin_again_with_the_process(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], Traffic({1: 100})) as gateway:
        gateway.calls(30)
        before = gateway.gateway.stats()[1].served
        stop(gateway)
        again = start(gateway.gateway, tmp_path / "again.log")
        again.calls(4)
        assert again.gateway.stats()[1].served.since(before).requests == 4
        stop(again)


@pytest.mark.alone
def test_access_log(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, free_port())]
    with running(tmp_path, backends, Traffic({1: 100}), access_log="-") as gateway:
        gateway.call("/invocations?secret=1", X_Request_Id="the-one")
        gateway.call("/slow/0.05")
        gateway.call(X_Revision="2", Authorization="Bearer secret")
        gateway.call(X_Revision="7")
        eventually(lambda: len(gateway.access_log()) == 4)
        ok, slow, failed, unknown = gateway.access_log()
        assert "secret" not in gateway.log.read_text()
    assert (ok["revision"], ok["cluster"], ok["status"], ok["attempts"]) == (1, "r1", 200, 1)
    assert (ok["request_id"], ok["path"], ok["method"]) == ("the-one", "/invocations", "POST")
    assert ok["replica"] == f"127.0.0.1:{toys[0].port}"
    assert (ok["bytes_in"], ok["protocol"]) == (2, "HTTP/1.1")
    assert 50 <= slow["duration_ms"] < 200
    assert len(slow["request_id"]) == 36
    assert (failed["revision"], failed["status"]) == (2, 503)
    assert (unknown["revision"], unknown["status"]) == (None, 404)


def test_access_log_in_a_file(tmp_path: Path, toys: list[Toy]) -> None:
    log = tmp_path / "access.log"
    with running(tmp_path, [backend(1, toys[0].port)], Traffic({1: 100}), access_log=str(log)) as gateway:
        gateway.calls(3)
        eventually(lambda: log.read_text().count("\n") == 3)
        assert gateway.access_log() == []
