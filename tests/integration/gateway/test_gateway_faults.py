"""What goes wrong: replicas that die, hang or misbehave, and what may be tried again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from mlflow_deploy.gateway.spec import Traffic
from tests.integration.gateway.running import Load, backend, free_port, running, toy_process
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually

ALL = Traffic({1: 100})


def test_killed_replica_costs_no_request_that_may_be_repeated(tmp_path: Path) -> None:
    with (
        toy_process("one") as (victim, port),
        toy_process("two") as (_, other),
        running(tmp_path, [backend(1, port, other)], ALL, repeatable=("/invocations",)) as gateway,
        Load(gateway.port, clients=6, pause=0.02) as load,
    ):
        eventually(lambda: gateway.gateway.stats()[1].healthy == 2 and len(load.answers) > 100)
        os.kill(victim.pid, signal.SIGKILL)
        eventually(lambda: gateway.gateway.stats()[1].healthy == 1)
        answered = len(load.answers)
        eventually(lambda: len(load.answers) > answered + 100)
    assert load.lost() == []


def test_killed_replica_costs_only_what_it_was_computing(tmp_path: Path) -> None:
    with (
        toy_process("one") as (victim, port),
        toy_process("two") as (_, other),
        running(tmp_path, [backend(1, port, other)], ALL) as gateway,
    ):
        eventually(lambda: gateway.gateway.stats()[1].healthy == 2)
        with Load(gateway.port, clients=8, path="/slow/1") as load:
            # So many that some are surely in each replica.
            eventually(lambda: gateway.gateway.stats()[1].served.active == 8)
            os.kill(victim.pid, signal.SIGKILL)
            time.sleep(2.5)
    assert load.failures == []
    # At most one request of each client was in the replica when it died; the others never notice.
    assert 1 <= len(load.bad()) <= 8
    for _, status, _, text in load.bad():
        assert status == 502
        assert json.loads(text)["error_code"] == "TEMPORARILY_UNAVAILABLE"


def test_replica_that_starts_again_gets_traffic_again(tmp_path: Path, toys: list[Toy]) -> None:
    port = free_port()
    with running(tmp_path, [backend(1, toys[0].port, port)], ALL) as gateway:
        eventually(lambda: gateway.gateway.stats()[1].healthy == 1)
        assert gateway.calls(100) == {"1": 100}
        late = Toy("late", port)
        eventually(lambda: gateway.gateway.stats()[1].healthy == 2)
        assert gateway.calls(100) == {"1": 100}
        assert len(late.paths()) > 20
        late.close()


@pytest.mark.parametrize("path", ["/break", "/half"])
def test_post_that_reached_a_replica_is_not_sent_again(tmp_path: Path, toys: list[Toy], path: str) -> None:
    with running(tmp_path, [backend(1, toys[0].port, toys[1].port)], ALL) as gateway:
        # Clients cannot talk the gateway into it either.
        steering = {"X_Envoy_Retry_On": "reset,5xx", "X_Envoy_Max_Retries": "5"}
        for headers in ({}, steering):
            before = len(toys[0].paths()) + len(toys[1].paths())
            if path == "/break":
                status, _, body = gateway.call(path, **headers)
                assert status == 502
                assert body["error_code"] == "TEMPORARILY_UNAVAILABLE"
                assert "not tried again" in body["message"]
            else:
                with pytest.raises(http.client.IncompleteRead):
                    gateway.call(path, **headers)
            time.sleep(0.3)
            assert len(toys[0].paths()) + len(toys[1].paths()) == before + 1
        assert gateway.gateway.stats()[1].served.retries == 0
        assert gateway.call("/slow/0.1", X_Envoy_Upstream_Rq_Timeout_Ms="10")[0] == 200
        sent = [headers for toy in toys for _, path, headers in toy.seen if path != "/ping"]
        assert not [
            name
            for headers in sent
            for name in headers
            if name in ("x-envoy-retry-on", "x-envoy-max-retries")
        ]


def test_process_that_dies_in_the_middle_of_an_answer(tmp_path: Path, toys: list[Toy]) -> None:
    with (
        toy_process("one") as (victim, port),
        running(tmp_path, [backend(1, port)], ALL, repeatable=("/",)) as gateway,
    ):
        gateway.gateway.apply([backend(1, port), backend(2, toys[0].port)], ALL)
        # The answer had begun, so even a repeatable request is not sent again.
        with pytest.raises(http.client.IncompleteRead):
            gateway.call("/exit-half")
        assert victim.wait(60) == 9
        assert gateway.gateway.stats()[1].served.retries == 0
        status, headers, body = gateway.call()
        assert status == 503
        assert body["error_code"] == "TEMPORARILY_UNAVAILABLE"
        assert headers["x-mlflow-deploy-revision"] == "1"
        assert str(port) not in json.dumps(body)
        assert toys[0].paths() == []


def test_reading_and_repeatable_requests_are_sent_again(tmp_path: Path, toys: list[Toy]) -> None:
    with running(
        tmp_path, [backend(1, toys[0].port, toys[1].port)], ALL, repeatable=("/break/repeatable",)
    ) as gateway:
        for method, path in (("GET", "/break"), ("POST", "/break/repeatable")):
            before = [len(toy.paths()) for toy in toys[:2]]
            assert gateway.call(path, method)[0] == 502
            eventually(lambda before=before: sum(len(toy.paths()) for toy in toys[:2]) == sum(before) + 4)
            # On the other replica first.
            assert all(len(toy.paths()) > count for toy, count in zip(toys, before, strict=False))
        assert gateway.gateway.stats()[1].served.retries == 6


def test_connection_failures_are_tried_elsewhere(tmp_path: Path, toys: list[Toy]) -> None:
    # Nothing listens on the second port; before the health check knows, requests meet it.
    with running(tmp_path, [backend(1, toys[0].port, free_port())], ALL) as gateway:
        assert gateway.calls(200) == {"1": 200}
        assert len(toys[0].paths()) == 200


def test_large_bodies_are_tried_elsewhere_too(tmp_path: Path, toys: list[Toy]) -> None:
    port = free_port()
    dying = Toy("dying", port)
    with running(tmp_path, [backend(1, toys[0].port, port)], ALL) as gateway:
        eventually(lambda: gateway.gateway.stats()[1].healthy == 2)
        dying.close()
        large = b"x" * (8 << 20)
        for _ in range(4):
            assert gateway.call(body=large)[2] == {"from": "one", "size": len(large)}


def test_misbehaving_replica_is_ejected_although_it_answers_pings(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port, toys[1].port)], ALL) as gateway:
        toys[1].broken = True
        with Load(gateway.port, clients=2) as load:
            eventually(lambda: gateway.gateway.stats()[1].healthy == 1)
            time.sleep(0.2)
            ejected = time.monotonic()
            time.sleep(1.5)
        assert [answer for answer in load.answers if answer[1] == 503 and answer[0] < ejected]
        assert [answer for answer in load.bad() if answer[0] > ejected] == []


def test_errors_of_the_model_do_not_eject(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port, toys[1].port)], ALL) as gateway:
        for _ in range(40):
            assert gateway.call("/status/500")[0] == 500
        assert gateway.gateway.stats()[1].healthy == 2


def test_unhealthy_replica_gets_nothing(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port, toys[1].port)], ALL) as gateway:
        toys[1].healthy = False
        eventually(lambda: gateway.gateway.stats()[1].healthy == 1)
        before = len(toys[1].paths())
        assert gateway.calls(100) == {"1": 100}
        assert len(toys[1].paths()) == before
        # When none is healthy, all are tried: they may only be busy.
        toys[0].healthy = False
        eventually(lambda: gateway.gateway.stats()[1].healthy == 0)
        assert gateway.calls(20) == {"1": 20}


def test_slow_request_gets_504(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, request_timeout_seconds=0.3) as gateway:
        status, headers, body = gateway.call("/slow/2")
        assert status == 504
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"]
        assert body == {
            "error_code": "DEADLINE_EXCEEDED",
            "message": "The request took longer than the deployment allows",
        }
        assert gateway.call()[0] == 200
        stats = gateway.gateway.stats()[1].served
        assert (stats.requests, stats.server_errors, stats.retries) == (2, 1, 0)


def test_no_limit_on_time(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, request_timeout_seconds=0) as gateway:
        assert gateway.call("/slow/1.2")[0] == 200


def test_idle_clients_are_disconnected(tmp_path: Path, toys: list[Toy]) -> None:
    with (
        running(tmp_path, [backend(1, toys[0].port)], ALL, idle_timeout_seconds=0.3) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as client,
    ):
        client.settimeout(60)
        assert client.recv(100) == b""


def test_rate_limit(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, rate_limit=20) as gateway:
        begun = time.monotonic()
        answers = [gateway.call() for _ in range(60)]
        passed = sum(status == 200 for status, _, _ in answers)
        allowed = 20 + 20 * (time.monotonic() - begun) + 1
        assert 20 <= passed <= allowed
        _, headers, body = next(answer for answer in answers if answer[0] == 429)
        assert headers["retry-after"] == "1"
        assert body["error_code"] == "RESOURCE_EXHAUSTED"
        assert not [name for name in headers if name.startswith("x-envoy")]
        # Health checks of load balancers are no predictions.
        assert all(gateway.call("/ping", "GET")[0] == 200 for _ in range(30))
        time.sleep(1.1)
        assert gateway.call()[0] == 200
        assert len([path for path in toys[0].paths() if path == "/invocations"]) == passed + 1


def test_too_many_requests_at_once(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, max_requests=2) as gateway:
        with Load(gateway.port, clients=8, path="/slow/0.3") as load:
            time.sleep(0.4)
        assert load.failures == []
        assert {status for _, status, _, _ in load.answers} == {200, 503}
        assert json.loads(load.bad()[0][3])["message"].startswith("The revision has as many requests")


def test_too_many_connections(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, max_connections=3) as gateway:
        clients = [http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60) for _ in range(5)]

        def ping(client: http.client.HTTPConnection) -> int:
            try:
                client.request("GET", "/ping")
                return client.getresponse().status
            except (OSError, http.client.HTTPException):
                client.close()
                return 0

        assert [ping(client) for client in clients] == [200] * 3 + [0] * 2
        for client in clients[:3]:
            client.close()
        eventually(lambda: ping(clients[4]) == 200)
        clients[4].close()


def test_requests_that_are_not_http(tmp_path: Path, toys: list[Toy]) -> None:
    requests = [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ]
    with running(tmp_path, [backend(1, toys[0].port)], ALL) as gateway:
        for sent, status in requests:
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as client:
                client.sendall(sent)
                answer = client.recv(65536)
                assert answer.startswith(f"HTTP/1.1 {status} ".encode())
                assert b"nvoy" not in answer
