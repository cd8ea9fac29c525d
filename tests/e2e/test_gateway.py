"""A deployment behind a gateway loses no request while revisions come and go."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import ConfigError, NothingToRollBack, RevisionNotFound, Unsupported
from mlflow_deploy.lifecycle import release
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers, kill_all, processes_of, servers_of
from tests.e2e.load import REVISION, failed, forced, load, quiet
from tests.waiting import eventually


@pytest.fixture
def client(home: Path, iris_models: str) -> Any:
    return get_deploy_client("local")


@pytest.fixture
def url(client: Any) -> str:
    """The address of deployment d1, which serves version 1 behind a gateway."""
    return str(client.create_deployment("d1", "models:/iris/1")["url"])


def test_update_traffic_and_rollback_under_load_lose_nothing(client: Any, url: str, iris_rows: Any) -> None:
    target = LocalTarget()
    with load(url, iris_rows, rate=200) as seen:
        assert client.update_deployment("d1", "models:/iris/2")["traffic"] == {"2": 100}
        assert release.set_traffic(target, "d1", {1: 50, 2: 50}, progress=quiet)["revision"] in (1, 2)
        before = collections.Counter(seen)
        eventually(lambda: seen["200"] > before["200"] + 400, 30, "400 more answers")
        shares = {number: seen[f"r{number}"] - before[f"r{number}"] for number in (1, 2)}
        assert release.set_traffic(target, "d1", {2: 100}, progress=quiet)["traffic"] == {"2": 100}
        assert release.rollback(target, "d1", progress=quiet)["traffic"] == {"1": 100}
    assert failed(seen) == {}
    # Five standard deviations of a binomial with 400 draws.
    assert abs(shares[1] / sum(shares.values()) - 0.5) < 0.125
    description = client.get_deployment("d1")
    assert [row["status"] for row in description["revisions"]] == ["ready", "stopped"]


def test_rollback_needs_no_registry_and_says_when_there_is_nothing(
    client: Any, url: str, iris_rows: Any, tracking: str
) -> None:
    target = LocalTarget()
    with pytest.raises(NothingToRollBack):
        release.rollback(target, "d1", progress=quiet)
    client.update_deployment("d1", "models:/iris/2")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    mlflow.set_registry_uri("http://127.0.0.1:9")
    try:
        assert release.rollback(target, "d1", progress=quiet)["model_version"] == "1"
        assert release.rollback(target, "d1", progress=quiet)["model_version"] == "2"
        assert release.rollback(target, "d1", to=1, progress=quiet)["model_version"] == "1"
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(tracking)
    assert answers(url, iris_rows.head(2))


@pytest.mark.parametrize(
    ("shares", "error"),
    [
        ({1: 90}, ConfigError),
        ({1: 110, 2: -10}, ConfigError),
        ({7: 100}, RevisionNotFound),
        ({}, ConfigError),
    ],
)
def test_wrong_shares_change_nothing(
    client: Any, url: str, shares: dict[int, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        release.set_traffic(LocalTarget(), "d1", shares, progress=quiet)
    assert client.get_deployment("d1")["traffic"] == {"1": 100}


def test_killed_replica_costs_no_request_and_is_replaced(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1", config={"replicas": "2"})["url"]
    target = LocalTarget()
    with load(url, iris_rows, rate=200) as seen:
        for replica in (1, 2):
            process = target.supervisor.state(f"d1.r1-{replica}")
            assert process is not None
            before = seen["200"]
            for worker in psutil.Process(process.pid).children():
                worker.kill()
            psutil.Process(process.pid).kill()
            eventually(lambda before=before: seen["200"] > before + 200, 20, "200 answers after kill -9")
            eventually(lambda: client.get_deployment("d1")["detail"] == "", 20, "both replicas are ready")
            again = target.supervisor.state(f"d1.r1-{replica}")
            assert again is not None
            assert again.pid not in (0, process.pid)
    print(f"{seen['200']} answers, others: {failed(seen)}")
    assert failed(seen) == {}
    times = [line[10:39] for line in target.logs("d1", 1, follow=False) if line.startswith('{"time"')]
    assert times == sorted(times)
    assert {path.name for path in (home / "local" / "deployments" / "d1" / "logs").glob("r1-*.log")} == {
        "r1-1.log",
        "r1-2.log",
    }


@pytest.mark.alone
def test_kept_revision_is_reached_by_its_number_and_takes_over_at_once(
    client: Any, home: Path, iris_rows: Any
) -> None:
    """Revision 1 runs on without traffic; after a kill of everything it comes back with the others."""
    url = client.create_deployment("d1", "models:/iris/1")["url"]
    config = {"keep_revisions": "1", "replicas": "2"}
    described = client.update_deployment("d1", "models:/iris/2", config=config)
    assert [row["status"] for row in described["revisions"]] == ["ready", "ready"]
    assert described["traffic"] == {"2": 100}
    assert forced(url, iris_rows, 1) == (200, "1")
    assert forced(url, iris_rows, 2) == (200, "2")
    assert forced(url, iris_rows, 3)[0] == 404
    kept = LocalTarget().supervisor.state("d1.r1-1")
    begun = time.monotonic()
    back = release.rollback(LocalTarget(), "d1", progress=quiet)
    took = time.monotonic() - begun
    print(f"rolled back in {took:.2f} s")
    assert took < 3
    assert back["traffic"] == {"1": 100}
    assert LocalTarget().supervisor.state("d1.r1-1") == kept
    assert forced(url, iris_rows, 2)[0] == 404  # Revision 1 keeps none.
    client.update_deployment("d1", "models:/iris/2", config=config)
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    eventually(lambda: not processes_of(home), 10, "all processes are gone")
    release.reconcile(LocalTarget(), quiet)
    eventually(lambda: forced(url, iris_rows, 1) == (200, "1"), 20, "the kept revision is back")
    client.update_deployment("d1", "models:/iris/1", config={"keep_revisions": "0"})
    states = [row["status"] for row in client.get_deployment("d1")["revisions"]]
    assert states == ["stopped", "stopped", "stopped", "ready"][-len(states) :]


def test_settings_of_the_gateway_are_kept_and_changed_while_it_runs(
    client: Any, home: Path, iris_rows: Any
) -> None:
    config = {
        "envoy.sticky": "header:X-Session",
        "envoy.access_log": "true",
        "envoy.request_timeout_seconds": "7",
    }
    url = client.create_deployment("d1", "models:/iris/1", config=config)["url"]
    client.update_deployment("d1", "models:/iris/2")
    release.set_traffic(LocalTarget(), "d1", {1: 50, 2: 50}, progress=quiet)
    body = {
        "dataframe_split": {"columns": list(iris_rows.columns), "data": iris_rows.head(1).values.tolist()}
    }

    def ask(**headers: str) -> requests.Response:
        return requests.post(f"{url}/invocations", json=body, headers=headers, timeout=5)

    by_session = {
        session: {ask(**{"X-Session": f"user {session}"}).headers[REVISION] for _ in range(3)}
        for session in range(12)
    }
    assert all(len(revisions) == 1 for revisions in by_session.values())
    assert {revision for revisions in by_session.values() for revision in revisions} == {"1", "2"}
    log = home / "local" / "deployments" / "d1" / "logs" / "gateway.log"
    eventually(lambda: '"revision":2' in log.read_text(), 5, "the access log has a line")
    line = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
    assert {"revision", "status", "duration_ms", "request_id", "replica"} <= line.keys()

    gateway = next(p for p in processes_of(home) if "envoy" in p.name()).pid
    changed = {"envoy.sticky": "cookie:who", "envoy.rate_limit": "3", "envoy.sticky_seconds": "60"}
    with load(url, iris_rows, rate=100) as seen:
        client.update_deployment("d1", "models:/iris/2", config=changed)
        eventually(lambda: seen["429"] > 0, 10, "the rate limit is reached")
    assert set(failed(seen)) == {"429"}
    assert next(p for p in processes_of(home) if "envoy" in p.name()).pid == gateway
    assert eventually(lambda: ask().status_code == 200, 5, "an answer within the rate limit") < 5
    time.sleep(1)
    assert "Max-Age=60" in ask().headers["set-cookie"]
    served = LocalTarget().stats(LocalTarget().require("d1"))
    assert served[max(served)].succeeded > 0
    with pytest.raises(ConfigError, match=r"envoy\.threads"):
        client.update_deployment("d1", config={"envoy.threads": "3"})


@pytest.mark.parametrize("setting", [{"replicas": "2"}, {"keep_revisions": "1"}, {"envoy.rate_limit": "9"}])
def test_settings_that_need_a_gateway_are_refused_without_one(client: Any, setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="gateway"):
        client.create_deployment("d1", "models:/iris/1", config={"gateway": "none", **setting})
    assert LocalTarget().names() == []


def test_without_envoy_there_is_no_gateway_and_it_is_said(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway is chosen once: one that is installed later changes nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install .*gateway"):
            client.create_deployment("d1", "models:/iris/1", config={"replicas": "2"})
        lines: list[str] = []
        made = release.create(LocalTarget(), "d1", "models:/iris/1", progress=lines.append)
    assert made["gateway"] == "none"
    assert any("gateway" in line for line in lines)
    assert any("mlflow-deploy[gateway]" in note for note in client.get_deployment("d1")["notes"])
    updated = client.update_deployment("d1", "models:/iris/2", config={"gateway": "auto"})
    assert updated["gateway"] == "none"
    assert updated["traffic"] == {"2": 100}


def test_split_without_gateway_is_refused(client: Any) -> None:
    client.create_deployment("d1", "models:/iris/1", config={"gateway": "none"})
    client.update_deployment("d1", "models:/iris/2")
    with pytest.raises(Unsupported, match="gateway=envoy"):
        release.set_traffic(LocalTarget(), "d1", {1: 50, 2: 50}, progress=quiet)
    assert release.rollback(LocalTarget(), "d1", progress=quiet)["model_version"] == "1"


def test_killed_gateway_and_killed_everything_come_back(
    client: Any, url: str, home: Path, iris_rows: Any
) -> None:
    next(p for p in processes_of(home) if "envoy" in p.name()).kill()
    back = eventually(lambda: answers(url, iris_rows.head(2)), 5, "an answer after kill -9 of the gateway")
    assert back < 5
    kill_all(home)
    eventually(lambda: not processes_of(home), 10, "all processes are gone")
    done = subprocess.run(
        [Path(sys.executable).parent / "mlflow-deploy", "up"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get_deployment("d1")["url"] == url
    assert answers(url, iris_rows.head(2))
    client.delete_deployment("d1")
    assert not servers_of(home)
    assert not processes_of(home)


def test_command_line_shows_and_moves_traffic(client: Any, url: str) -> None:
    client.update_deployment("d1", "models:/iris/2")
    tool = str(Path(sys.executable).parent / "mlflow-deploy")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60)

    done = run("traffic", "d1", "1=10", "2=90")
    assert done.returncode == 0, done.stderr
    assert "10 %" in done.stdout
    assert "90 %" in done.stdout
    wrong = run("traffic", "d1", "1=ten")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: '1=ten' is no share")
    assert run("rollback", "d1", "--to", "1", "--json").returncode == 0
    assert client.get_deployment("d1")["traffic"] == {"1": 100}


@pytest.mark.parametrize("gateway", ["none", "envoy"])
def test_grpc_is_found_at_its_address(client: Any, gateway: str) -> None:
    """Two deployments that speak gRPC, one beside the other, through a foreign client in its own process."""
    config = {"gateway": gateway, "serving.grpc": "true"}
    code = (
        "import sys, tritonclient.grpc as g\n"
        "client = g.InferenceServerClient(sys.argv[1])\n"
        "assert client.is_server_ready()\n"
        "print(client.get_model_metadata(sys.argv[2], as_json=True)['name'])\n"
    )
    for name in ("d1", "d2"):
        address = client.create_deployment(name, "models:/iris/1", config=config)["grpc"]
        done = subprocess.run([sys.executable, "-c", code, address, name], capture_output=True, text=True)
        assert done.stdout.strip() == name, done.stderr
