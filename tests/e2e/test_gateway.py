"""A deployment behind a gateway loses no request while revisions come and go."""

from __future__ import annotations

import collections
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import ConfigError, NothingToRollBack, RevisionNotFound, Unsupported
from mlflow_deploy.lifecycle import release
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers, eventually, processes_of, servers_of

REVISION = "x-mlflow-deploy-revision"


def quiet(_line: str) -> None:
    """Show no progress."""


@pytest.fixture
def client(home: Path, iris_models: str) -> Any:
    return get_deploy_client("local")


@pytest.fixture
def url(client: Any) -> str:
    """The address of deployment d1, which serves version 1 behind a gateway."""
    return str(client.create_deployment("d1", "models:/iris/1", config={"gateway": "envoy"})["url"])


@contextmanager
def load(url: str, rows: Any) -> Iterator[collections.Counter[str]]:
    """Ask without pause over new and kept connections; counts answers by status and by revision."""
    seen: collections.Counter[str] = collections.Counter()
    stop = threading.Event()
    body = {"dataframe_split": {"columns": list(rows.columns), "data": rows.head(1).to_numpy().tolist()}}

    def ask(session: Any) -> None:
        while not stop.is_set():
            try:
                response = session.post(f"{url}/invocations", json=body, timeout=10)
            except requests.RequestException as error:
                seen[f"{type(error).__name__}: {error}"] += 1
                continue
            seen[str(response.status_code)] += 1
            seen[f"r{response.headers.get(REVISION)}"] += 1

    with requests.Session() as kept:
        threads = [threading.Thread(target=ask, args=(session,)) for session in (kept, requests)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def failed(seen: collections.Counter[str]) -> dict[str, int]:
    """Answers other than 200."""
    return {what: count for what, count in seen.items() if what != "200" and not what.startswith("r")}


def test_update_traffic_and_rollback_under_load_lose_nothing(client: Any, url: str, iris_rows: Any) -> None:
    target = LocalTarget()
    with load(url, iris_rows) as seen:
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


def test_split_without_gateway_is_refused(client: Any) -> None:
    client.create_deployment("d1", "models:/iris/1")
    client.update_deployment("d1", "models:/iris/2")
    with pytest.raises(Unsupported, match="gateway=envoy"):
        release.set_traffic(LocalTarget(), "d1", {1: 50, 2: 50}, progress=quiet)
    assert release.rollback(LocalTarget(), "d1", progress=quiet)["model_version"] == "1"


def test_killed_gateway_and_killed_everything_come_back(
    client: Any, url: str, home: Path, iris_rows: Any
) -> None:
    next(p for p in processes_of(home) if "envoy" in p.name()).kill()
    eventually(lambda: answers(url, iris_rows.head(2)), 5, "an answer after kill -9 of the gateway")
    for process in processes_of(home):
        process.kill()
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
