"""Deployments survive dead processes, killed commands, impatient users and full disks."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import (
    ConversionError,
    DeployError,
    DeploymentBusy,
    DeploymentExists,
    ModelCorrupt,
    PortInUse,
    StateWriteFailed,
)
from mlflow_deploy.lifecycle import release
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers, kill_all, processes_of, servers_of
from tests.waiting import eventually

CREATE = (
    "from mlflow.deployments import get_deploy_client as g\n"
    "g('local').create_deployment('d1', 'models:/iris/1')"
)


def quiet(_line: str) -> None:
    """Show no progress."""


@pytest.fixture
def client(home: Path, iris_models: str) -> Any:
    return get_deploy_client("local")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.alone
def test_killed_server_answers_again_within_five_seconds(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1", config={"gateway": "none"})["url"]
    for process in servers_of(home):
        process.kill()
    assert eventually(lambda: answers(url, iris_rows.head(2)), 5, "an answer after kill -9") < 5


@pytest.mark.alone
def test_killed_worker_answers_again_within_five_seconds(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1", config={"gateway": "none"})["url"]
    parents = {process.ppid() for process in servers_of(home)}
    for process in servers_of(home):
        if process.pid not in parents:
            process.kill()
    assert eventually(lambda: answers(url, iris_rows.head(2)), 5, "an answer after kill -9 of a worker") < 5


def test_everything_killed_comes_back_under_the_same_address(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1")["url"]
    kill_all(home)
    eventually(lambda: not processes_of(home), 10, "all processes are gone")
    assert client.get_deployment("d1")["status"] == "unavailable"
    done = subprocess.run(
        [Path(sys.executable).parent / "mlflow-deploy", "up"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get_deployment("d1")["url"] == url
    assert answers(url, iris_rows.head(2))


def test_dead_supervisor_takes_its_servers_along_and_up_brings_them_back(
    client: Any, home: Path, iris_rows: Any
) -> None:
    url = client.create_deployment("d1", "models:/iris/1")["url"]
    daemon = next(p for p in processes_of(home) if "supervisord" in " ".join(p.cmdline()))
    daemon.kill()
    eventually(lambda: not servers_of(home), 20, "servers without supervisor are gone")
    release.reconcile(LocalTarget(), quiet)
    eventually(lambda: answers(url, iris_rows.head(2)), 20, "an answer after up")


@pytest.mark.slow
def test_create_killed_anywhere_leaves_the_old_or_the_new_state(
    client: Any, home: Path, iris_rows: Any
) -> None:
    generator = random.Random(7)
    took = 8.0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", CREATE], stderr=subprocess.DEVNULL)
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.3, 1.0) * took)
            took = min(took, time.monotonic() - begun)
        process.kill()
        process.wait()
        described = release.reconcile(LocalTarget(), quiet)
        if described:
            assert [row["name"] for row in described] == ["d1"]
            url = described[0]["url"]
            eventually(lambda url=url: answers(url, iris_rows.head(2)), 20, "the new state answers")
        else:
            assert not servers_of(home)
            assert client.list_deployments() == []
        client.delete_deployment("d1")
        eventually(lambda: not servers_of(home), 20, "nothing runs after delete")


@pytest.mark.slow
def test_update_killed_anywhere_never_stops_the_answers(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1")["url"]
    generator = random.Random(11)
    for number in range(4):
        code = (
            "from mlflow.deployments import get_deploy_client as g\n"
            f"g('local').update_deployment('d1', 'models:/iris/{2 - number % 2}')"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(3, 9))
        process.kill()
        process.wait()
        assert answers(url, iris_rows.head(2))
        release.reconcile(LocalTarget(), quiet)
        assert answers(url, iris_rows.head(2))
        assert client.get_deployment("d1")["status"] == "ready"
        eventually(
            lambda: len({" ".join(p.cmdline()) for p in servers_of(home)}) == 1, 20, "one revision is left"
        )


def test_interrupted_create_leaves_nothing(client: Any, home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CREATE], stderr=subprocess.PIPE, text=True)
    programs = home / "local" / "programs"
    eventually(lambda: programs.is_dir() and any(programs.iterdir()), 60, "the candidate is started")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert process.stderr is not None
    process.stderr.close()
    assert not servers_of(home)
    assert client.list_deployments() == []
    assert LocalTarget().names() == []


def test_two_creates_at_once_make_one_deployment(client: Any, iris_rows: Any) -> None:
    outcomes: list[Any] = []

    def create() -> None:
        try:
            outcomes.append(get_deploy_client("local").create_deployment("d1", "models:/iris/1"))
        except DeployError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [outcome for outcome in outcomes if isinstance(outcome, DeployError)]
    assert len(errors) == 1
    assert isinstance(errors[0], DeploymentBusy | DeploymentExists)
    assert answers(client.get_deployment("d1")["url"], iris_rows.head(2))


def test_deployment_outlives_the_terminal(client: Any, iris_rows: Any) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", CREATE])
    with contextlib.suppress(OSError):
        while os.read(terminal, 1024):
            pass
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0
    time.sleep(1)
    assert answers(client.get_deployment("d1")["url"], iris_rows.head(2))


def test_update_under_load_costs_a_client_at_most_one_retry(client: Any, home: Path, iris_rows: Any) -> None:
    url = client.create_deployment("d1", "models:/iris/1", config={"gateway": "none"})["url"]
    stop = threading.Event()
    counts = {True: 0, False: 0}

    def load() -> None:
        while not stop.is_set():
            # Without a gateway the old revision refuses with 503 in the moment of the hand-over.
            counts[answers(url, iris_rows.head(1)) or answers(url, iris_rows.head(1))] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for version in (2, 1):
            described = client.update_deployment("d1", f"models:/iris/{version}")
            assert described["model_version"] == str(version)
    finally:
        stop.set()
        thread.join()
    assert described["revision"] == 3
    assert counts[False] == 0
    assert counts[True] > 100


def test_update_that_cannot_start_leaves_the_old_revision(
    client: Any, iris_rows: Any, tmp_path: Path
) -> None:
    client.create_deployment("d1", "models:/iris/1")
    before = client.get_deployment("d1")
    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts("models:/iris/2"), model)
    for file in model.glob("model.*"):
        file.write_bytes(b"broken")
    with pytest.raises(DeployError):
        client.update_deployment("d1", str(model))
    after = client.get_deployment("d1")
    assert {**after, "detail": ""} == {**before, "detail": ""}
    assert answers(after["url"], iris_rows.head(2))


def test_taken_port_is_refused(client: Any, free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(PortInUse, match=str(free_port)):
            client.create_deployment("d1", "models:/iris/1", config={"port": str(free_port)})
    assert LocalTarget().names() == []
    assert client.create_deployment("d1", "models:/iris/1", config={"port": str(free_port)})["url"].endswith(
        str(free_port)
    )
    with pytest.raises(PortInUse):
        client.create_deployment("d2", "models:/iris/1", config={"port": str(free_port)})


def test_corrupt_model_is_refused_and_nothing_is_left(client: Any, home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts("models:/iris/1"), model)
    (model / "MLmodel").write_text("flavors: {")
    with pytest.raises((ModelCorrupt, ConversionError)):
        client.create_deployment("d1", str(model))
    assert LocalTarget().names() == []
    assert not servers_of(home)


@pytest.fixture
def tiny_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder on a file system of one megabyte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.decode().strip()}")
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(folder))
    yield folder
    LocalTarget().supervisor.shut_down()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_a_clear_error_and_keeps_the_state(tiny_disk: Path, iris_models: str) -> None:
    client = get_deploy_client("local")
    (tiny_disk / "ballast").write_bytes(b"x" * 900_000)
    with contextlib.suppress(OSError), (tiny_disk / "ballast").open("ab") as ballast:
        while True:
            ballast.write(b"x" * 4096)
            ballast.flush()
    with pytest.raises(StateWriteFailed, match="No space left"):
        client.create_deployment("d1", "models:/iris/1")
    (tiny_disk / "ballast").unlink()
    assert client.list_deployments() == []
    assert client.create_deployment("d1", "models:/iris/1")["status"] == "ready"
