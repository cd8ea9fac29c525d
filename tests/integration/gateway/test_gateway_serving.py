"""The gateway in front of the real scoring server: a canary to the end, a killed replica, a changed setting."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.gateway.gateway import Gateway
from mlflow_deploy.gateway.spec import Traffic
from tests.bundles import adder_bundle
from tests.integration.gateway.running import Load, backend, running, scoring_server, within
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually

REQUEST = b'{"dataframe_split": {"columns": ["x"], "data": [[1.5]]}}'


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Models that add 1 and 2."""
    folder = tmp_path_factory.mktemp("bundles")
    return [adder_bundle(folder / "store", folder / f"work-{number}", float(number)) for number in (1, 2)]


def test_canary_and_stop_of_the_old_revision(tmp_path: Path, bundles: list[Bundle]) -> None:
    with (
        scoring_server(bundles[0], tmp_path, 1) as (old, one),
        scoring_server(bundles[1], tmp_path, 2) as (_, two),
        running(tmp_path, [backend(1, one)], Traffic({1: 100})) as gateway,
        Load(gateway.port, body=REQUEST) as load,
    ):
        both = [backend(1, one), backend(2, two)]
        for share in (10, 50, 100):
            gateway.gateway.apply(both, Traffic({1: 100 - share, 2: share}))
            begun = time.monotonic()
            eventually(lambda begun=begun: load.count(begun).total() > 100)
            found = load.count(begun)
            assert within(found["2"], found.total(), share / 100)
        gateway.gateway.apply(both[1:], Traffic({2: 100}))
        old.send_signal(signal.SIGTERM)
        assert old.wait(60) == 0
        time.sleep(0.3)
    assert load.lost() == []
    assert {(revision, json.loads(text)["predictions"][0]) for _, _, revision, text in load.answers} == {
        ("1", 2.5),
        ("2", 3.5),
    }


def test_killed_replica(tmp_path: Path, bundles: list[Bundle]) -> None:
    with (
        scoring_server(bundles[0], tmp_path) as (victim, one),
        scoring_server(bundles[0], tmp_path) as (_, two),
        running(tmp_path, [backend(1, one, two)], Traffic({1: 100}), repeatable=("/invocations",)) as gateway,
        Load(gateway.port, clients=6, pause=0.025, body=REQUEST) as load,
    ):
        eventually(lambda: gateway.gateway.stats()[1].healthy == 2 and len(load.answers) > 100)
        os.kill(victim.pid, signal.SIGKILL)
        eventually(lambda: gateway.gateway.stats()[1].healthy == 1)
        answered = len(load.answers)
        eventually(lambda: len(load.answers) > answered + 100)
    assert load.lost() == []


def test_settings_change_under_load(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port)]
    with running(tmp_path, backends, Traffic({1: 100})) as gateway, Load(gateway.port) as load:
        time.sleep(0.3)
        spec = dataclasses.replace(gateway.gateway.spec, request_timeout_seconds=0.2)
        changed = Gateway.prepare(gateway.gateway.folder, spec, backends, Traffic({1: 100}))
        changed.wait_ready()
        assert gateway.call("/slow/0.5")[0] == 504
        time.sleep(0.5)
    assert load.lost() == []
