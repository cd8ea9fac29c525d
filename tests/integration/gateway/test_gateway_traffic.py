"""Real Envoy before real servers: shares, forced revisions, sticky sessions, mirror, changes under load."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.gateway.spec import Mirror, Sticky, Traffic
from tests.integration.gateway.running import Load, backend, running, within
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually


def test_weights_are_shares(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port), backend(3, toys[2].port)]
    with running(tmp_path, backends, Traffic({1: 70, 2: 30, 3: 0})) as gateway:
        found = gateway.calls(1000)
    assert within(found["1"], 1000, 0.7)
    assert within(found["2"], 1000, 0.3)
    assert set(found) == {"1", "2"}
    assert len(toys[0].paths()) == found["1"]


def test_header_forces_a_revision(tmp_path: Path, toys: list[Toy]) -> None:
    with running(
        tmp_path, [backend(1, toys[0].port), backend(12, toys[1].port)], Traffic({1: 100})
    ) as gateway:
        for _ in range(20):
            status, headers, body = gateway.call(X_Revision="12")
            assert (status, headers["x-mlflow-deploy-revision"], body["from"]) == (200, "12", "two")
        assert gateway.call("/ping", "GET", X_Revision="12")[2]["from"] == "two"
        status, headers, body = gateway.call(X_Revision="2")
        assert status == 404
        assert body["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        assert "1, 12" in body["message"]
        assert "x-mlflow-deploy-revision" not in headers
        assert gateway.call(X_Revision="")[0] == 404


def test_header_keeps_values_with_their_revision(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port)]
    with running(
        tmp_path, backends, Traffic({1: 80, 2: 20}), sticky=Sticky(by="header", name="X-User")
    ) as gateway:
        users = [f"user-{number}" for number in range(250)]
        before = {user: gateway.call(X_User=user)[1]["x-mlflow-deploy-revision"] for user in users}
        assert {user: gateway.call(X_User=user)[1]["x-mlflow-deploy-revision"] for user in users} == before
        on_two = sum(revision == "2" for revision in before.values())
        assert within(on_two, 250, 0.2)
        gateway.gateway.apply(backends, Traffic({1: 50, 2: 50}))
        after = {user: gateway.call(X_User=user)[1]["x-mlflow-deploy-revision"] for user in users}
        assert within(sum(revision == "2" for revision in after.values()), 250, 0.5)
        # Nobody who was on the candidate goes back while its share grows.
        assert all(after[user] == "2" for user in users if before[user] == "2")
        assert within(gateway.calls(200)["2"], 200, 0.5)


def test_cookie_keeps_a_client_with_its_revision_and_replica(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port, toys[2].port), backend(2, toys[1].port)]
    sticky = Sticky(by="cookie", name="route", cookie_seconds=60)
    with running(tmp_path, backends, Traffic({1: 50, 2: 50}), sticky=sticky) as gateway:
        revisions = set()
        for _ in range(30):
            _, headers, body = gateway.call()
            cookie, _, attributes = headers["set-cookie"].partition(";")
            assert cookie.startswith("route=")
            assert "HttpOnly" in attributes
            assert "Max-Age=60" in attributes
            revisions.add(headers["x-mlflow-deploy-revision"])
            for _ in range(3):
                _, again, same = gateway.call(Cookie=cookie)
                assert again["x-mlflow-deploy-revision"] == headers["x-mlflow-deploy-revision"]
                assert same["from"] == body["from"]
                assert "set-cookie" not in again
        assert revisions == {"1", "2"}


def test_mirror_copies_and_drops_the_answers(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port)]
    with running(tmp_path, backends, Traffic({1: 100}, Mirror(2, 100))) as gateway:
        ids = [gateway.call(X_Request_Id=f"call-{number}")[1]["x-request-id"] for number in range(50)]
        assert ids == [f"call-{number}" for number in range(50)]
        eventually(lambda: len(toys[1].paths()) == 50)
        copies = sorted(headers["x-request-id"] for _, path, headers in toys[1].seen if path != "/ping")
        assert copies == sorted(ids)
        # The copy is the same request to the same host.
        assert {h["host"] for _, path, h in toys[1].seen if path != "/ping"} == {f"127.0.0.1:{gateway.port}"}
        large = b"x" * (4 << 20)
        assert gateway.call(body=large)[2] == {"from": "one", "size": len(large)}
        eventually(lambda: len(toys[1].paths()) == 51)
        assert gateway.call("/ping", "GET")[0] == 200
        eventually(lambda: gateway.gateway.stats()[2].mirrored.requests == 51)
        stats = gateway.gateway.stats()
        assert (stats[1].served.requests, stats[1].mirrored.requests) == (52, 0)
        assert (stats[2].served.requests, stats[2].mirrored.succeeded) == (0, 51)


@pytest.mark.alone
def test_failures_of_the_mirror_are_invisible(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port)]
    toys[1].broken = True
    with running(tmp_path, backends, Traffic({1: 100}, Mirror(2, 50))) as gateway:
        assert gateway.calls(200) == {"1": 200}
        eventually(lambda: gateway.gateway.stats()[2].mirrored.active == 0)
        mirrored = gateway.gateway.stats()[2].mirrored
        assert within(mirrored.requests, 200, 0.5)
        assert mirrored.server_errors == mirrored.requests
        toys[1].close()
        begun = time.monotonic()
        assert gateway.calls(100) == {"1": 100}
        assert time.monotonic() - begun < 3
        toys[1] = Toy("again")


@pytest.mark.alone
def test_slow_mirror_does_not_slow_the_answer(tmp_path: Path, toys: list[Toy]) -> None:
    with running(
        tmp_path, [backend(1, toys[0].port), backend(2, toys[1].port)], Traffic({1: 100})
    ) as gateway:
        # Nothing listens behind this port's queue: connections are made, answers never come.
        import socket

        with socket.create_server(("127.0.0.1", 0)) as deaf:
            silent = backend(2, int(deaf.getsockname()[1]))
            gateway.gateway.apply([backend(1, toys[0].port), silent], Traffic({1: 100}, Mirror(2)))
            begun = time.monotonic()
            assert gateway.calls(100) == {"1": 100}
            assert time.monotonic() - begun < 3


def test_traffic_moves_under_load_without_a_lost_request(tmp_path: Path, toys: list[Toy]) -> None:
    one, two = backend(1, toys[0].port), backend(2, toys[1].port)
    with running(tmp_path, [one], Traffic({1: 100})) as gateway, Load(gateway.port) as load:
        for weights in ({1: 90, 2: 10}, {1: 50, 2: 50}, {1: 0, 2: 100}):
            gateway.gateway.apply([one, two], Traffic(weights))
            begun = time.monotonic()
            eventually(lambda begun=begun: load.count(begun).total() > 150)
            found = load.count(begun)
            total = sum(found.values())
            assert within(found["2"], total, weights[2] / 100), found
        gateway.gateway.apply([two], Traffic({2: 100}))
        # What was left out gets nothing more, so it can be stopped.
        asked = len(toys[0].seen)
        time.sleep(0.5)
        toys[0].close()
        assert load.count(time.monotonic() - 0.3).keys() == {"2"}
        assert {path for _, path, _ in toys[0].seen[asked:]} <= {"/ping"}
        # And back to a new revision, all at once.
        gateway.gateway.apply([two, backend(3, toys[2].port)], Traffic({3: 100}))
        gateway.gateway.apply([backend(3, toys[2].port)], Traffic({3: 100}))
        begun = time.monotonic()
        time.sleep(0.3)
    assert load.lost() == []
    assert load.count(begun).keys() == {"3"}
    toys[0] = Toy("again")


def test_replicas_come_and_go_under_load(tmp_path: Path, toys: list[Toy]) -> None:
    ports = [toy.port for toy in toys]
    with running(tmp_path, [backend(1, ports[0])], Traffic({1: 100})) as gateway, Load(gateway.port) as load:
        for chosen in (ports[:2], ports, ports[1:], ports[2:], ports[:1]):
            gateway.gateway.apply([backend(1, *chosen)], Traffic({1: 100}))
            time.sleep(0.4)
    assert load.lost() == []
    assert all(toy.paths() for toy in toys)
    stats_total = sum(len(toy.paths()) for toy in toys)
    assert stats_total == len(load.answers)


@pytest.mark.alone
def test_requests_in_flight_are_answered_before_a_revision_is_forgotten(
    tmp_path: Path, toys: list[Toy]
) -> None:
    one, two = backend(1, toys[0].port), backend(2, toys[1].port)
    with running(tmp_path, [one, two], Traffic({1: 100})) as gateway:
        with Load(gateway.port, clients=3, path="/slow/0.7") as load:
            eventually(lambda: len(toys[0].paths()) == 3)
            begun = time.monotonic()
            gateway.gateway.apply([two], Traffic({2: 100}))
            assert time.monotonic() - begun > 0.4
        assert load.lost() == []
        # Past the limit they are finished all the same, as long as the revision runs.
        gateway.gateway.apply([one, two], Traffic({1: 100}))
        before = len(toys[0].paths())
        with Load(gateway.port, clients=3, path="/slow/0.9") as load:
            eventually(lambda: len(toys[0].paths()) == before + 3)
            begun = time.monotonic()
            gateway.gateway.apply([two], Traffic({2: 100}), drain=0.1)
            assert time.monotonic() - begun < 0.6
        assert load.lost() == []
        assert load.count()["1"] == 3


def test_traffic_for_revisions_that_are_not_there_is_refused(tmp_path: Path, toys: list[Toy]) -> None:
    one = backend(1, toys[0].port)
    with running(tmp_path, [one], Traffic({1: 100})) as gateway:
        with pytest.raises(ConfigError, match="no running revision 2"):
            gateway.gateway.apply([one], Traffic({2: 100}))
        assert gateway.calls(5) == {"1": 5}
