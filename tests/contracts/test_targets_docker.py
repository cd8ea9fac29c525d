"""The target contract over a real Docker engine, and what only target docker promises."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError, DeploymentBusy, PortInUse, StartFailed
from mlflow_deploy.images.errors import BaseImageNotFound, EngineNotRunning
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.docker import DockerTarget
from mlflow_deploy.targets.docker_containers import Place, ensure_running, wait_ready
from mlflow_deploy.targets.docker_names import Names
from mlflow_deploy.testing.targets import TargetContract, record_of
from tests import bundles as made
from tests.engine import BASE, things

SPACE = f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module", autouse=True)
def docker_home(
    tmp_path_factory: pytest.TempPathFactory, with_locks: Callable[[Path], str]
) -> Iterator[Path]:
    """One state folder for all tests here, so that requirements are resolved once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", with_locks(folder))
        patch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
        yield folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [made.adder_bundle(folder / "store", folder, constant) for constant in (1.0, 2.0)]


@pytest.fixture(scope="module")
def broken_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("broken")
    return made.broken_bundle(folder / "store", folder)


@pytest.fixture
def target(engine: Any) -> Iterator[DockerTarget]:
    """The target in a namespace of its own, which is left empty."""
    target = DockerTarget(namespace=SPACE)
    yield target
    for name in target.names():
        target.remove(name)
    assert things(engine, SPACE) == []


def answer(target: Target, record: DeploymentRecord) -> Any:
    """What the deployment answers to 1."""
    body = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
    response = requests.post(f"{target.url(record)}/invocations", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["predictions"][0]


def started(
    target: Target, bundles: Sequence[Bundle], *, gateway: str = "none", replicas: int = 1, **docker: Any
) -> DeploymentRecord:
    """Deployment d1 whose revision 1 has all traffic."""
    record = msgspec.structs.replace(record_of(target, "d1", bundles), gateway=gateway)
    revisions = tuple(
        msgspec.structs.replace(each, spec={**each.spec, "replicas": replicas, "docker": docker})
        for each in record.revisions
    )
    record = msgspec.structs.replace(record, revisions=revisions)
    target.write_record(record)
    target.start(record, record.revision(1), bundles[0])
    target.apply(record, {1: bundles[0]})
    return record


class TestDockerTarget(TargetContract):
    """What every target must do."""


def test_containers_are_locked_down(target: DockerTarget, engine: Any, bundles: Sequence[Bundle]) -> None:
    record = started(target, bundles, cpus=0.5, memory="512m", pids=100, env={"COLOUR": "red"}, user="4711:0")
    container = engine.containers.list(filters={"label": f"{keys.NAMESPACE}={SPACE}"})[0]
    host = container.attrs["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"] is True
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 512 * 1024**2, 100)
    assert host["PortBindings"]["8080/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(record.port)}]
    assert container.exec_run(["id", "-u"]).output.strip() == b"4711"
    assert container.exec_run(["sh", "-c", "echo $COLOUR"]).output.strip() == b"red"
    assert container.exec_run(["touch", "/opt/file"]).exit_code != 0
    assert answer(target, record) == 2.0


def test_state_is_read_without_a_local_folder(
    target: DockerTarget, bundles: Sequence[Bundle], tmp_path: Path
) -> None:
    record = started(target, bundles)
    other = DockerTarget(tmp_path / "elsewhere", namespace=SPACE)
    assert other.require("d1") == record
    assert other.status(record, 1).state == "ready"
    assert DockerTarget(namespace="nobody").names() == []


def test_removed_record_is_read_from_the_containers(
    target: DockerTarget, engine: Any, bundles: Sequence[Bundle]
) -> None:
    record = started(target, bundles)
    labels = [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=record"]
    (volume,) = engine.api.volumes({"label": labels})["Volumes"]
    engine.api.remove_volume(volume["Name"])
    assert target.require("d1") == record


def test_lock_holds_against_other_machines_and_outlives_no_kill(target: DockerTarget, tmp_path: Path) -> None:
    code = (
        "import os, sys; from mlflow_deploy.targets.docker import DockerTarget\n"
        f"with DockerTarget(namespace={SPACE!r}).lock('d1'): os._exit(0)"
    )
    other = DockerTarget(tmp_path / "elsewhere", namespace=SPACE)
    with target.lock("d1"), pytest.raises(DeploymentBusy, match="docker volume rm"), other.lock("d1"):
        pytest.fail("the lock was taken twice")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(DeploymentBusy), other.lock("d1"):
        pytest.fail("a lock of another machine was taken")
    with target.lock("d1"):
        pass


def test_half_made_and_half_removed_deployments_are_found(
    target: DockerTarget, engine: Any, bundles: Sequence[Bundle]
) -> None:
    target.reserve_address("d2", "127.0.0.1", None)
    assert target.names() == ["d2"]
    record = started(target, bundles)
    target.write_record(msgspec.structs.replace(record, phase="deleting"))
    engine.api.remove_container(f"mlflow-deploy-{SPACE}.d1.r1-1", force=True)
    assert target.names() == ["d1", "d2"]
    assert target.records() == []


def test_stopped_container_is_started_and_missing_one_made(
    target: DockerTarget, engine: Any, bundles: Sequence[Bundle]
) -> None:
    record = started(target, bundles)
    container = f"mlflow-deploy-{SPACE}.d1.r1-1"
    engine.api.kill(container)
    assert target.status(record, 1).state == "unavailable"
    target.apply(record, {1: bundles[0]})
    assert target.status(record, 1).state == "ready"
    engine.api.remove_container(container, force=True)
    target.apply(record, {1: bundles[0]})
    assert answer(target, record) == 2.0


def test_port_taken_at_the_start_is_one_clear_error(target: DockerTarget, bundles: Sequence[Bundle]) -> None:
    record = record_of(target, "d1", bundles)
    target.write_record(record)
    with socket.create_server(("127.0.0.1", record.port)):
        with pytest.raises(PortInUse, match=str(record.port)):
            target.start(record, record.revision(1), bundles[0])
        with pytest.raises(PortInUse):
            target.reserve_address("d2", "127.0.0.1", record.port)
    assert target.status(record, 1).state == "stopped"


def test_gpu_revision_is_refused_or_falls_back(
    target: DockerTarget, engine: Any, bundles: Sequence[Bundle]
) -> None:
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine has a GPU")
    record = started(target, bundles)
    image = engine.api.inspect_container(f"mlflow-deploy-{SPACE}.d1.r1-1")["Image"]

    def place(fallback: str) -> Place:
        docker = {"device": "gpu", "gpu_fallback": fallback}
        revision = msgspec.structs.replace(record.revision(2), spec={"docker": docker})
        return Place(Names(SPACE), record, revision)

    with pytest.raises(StartFailed, match=r"no GPU.*gpu_fallback=cpu"):
        ensure_running(engine, place("refuse"), image, publish=False)
    target.stop("d1", 2)
    wait_ready(engine, place("cpu"), ensure_running(engine, place("cpu"), image, publish=False))


def test_bad_settings_and_missing_images_are_one_clear_error(
    target: DockerTarget, bundles: Sequence[Bundle]
) -> None:
    with pytest.raises(ConfigError, match="gateway=envoy"):
        started(target, bundles, replicas=2)
    with pytest.raises(BaseImageNotFound, match="no-such-base"):
        started(target, bundles, base_image="127.0.0.1:9/no-such-base:1")


@pytest.mark.parametrize("gateway", ["none", "envoy"])
def test_certificates_are_copied_to_where_they_are_needed(
    target: DockerTarget, bundles: Sequence[Bundle], tmp_path: Path, gateway: str
) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    cert = str(tmp_path / "cert.pem")
    serving = {"tls_cert": cert, "tls_key": str(tmp_path / "key.pem")}
    record = msgspec.structs.replace(record_of(target, "d1", bundles), gateway=gateway)
    spec = {"ready_seconds": 60, "serving": serving}
    revision = msgspec.structs.replace(record.revision(1), spec=spec)
    record = msgspec.structs.replace(record, revisions=(revision,))
    target.write_record(record)
    target.start(record, revision, bundles[0])
    target.apply(record, {1: bundles[0]})
    assert requests.get(f"{target.url(record)}/ping", verify=cert, timeout=60).status_code == 200
    (tmp_path / "key.pem").unlink()
    target.stop("d1", 1)
    target.apply(record, {1: bundles[0]})
    assert requests.get(f"{target.url(record)}/ping", verify=cert, timeout=60).status_code == 200


def test_engine_elsewhere_is_reached_by_host_and_by_context(
    target: DockerTarget, bundles: Sequence[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = started(target, bundles)

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect("/var/run/docker.sock")
                while ready := select.select([self.request, engine], [], [], 30)[0]:
                    for source in ready:
                        data = source.recv(65536)
                        if not data:
                            return
                        (engine if source is self.request else self.request).sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_address[1]}"
        with monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", address)
            assert target.status(record, 1).state == "ready"
            target.stop("d1", 1)
            target.apply(record, {1: bundles[0]})
            assert target.reserve_address("d2", "192.0.2.77", None) != record.port
        with monkeypatch.context() as patch:
            folder = tmp_path / "contexts" / "meta" / hashlib.sha256(b"there").hexdigest()
            folder.mkdir(parents=True)
            endpoints = {"docker": {"Host": address, "SkipTLSVerify": False}}
            meta = {"Name": "there", "Metadata": {}, "Endpoints": endpoints}
            (folder / "meta.json").write_text(json.dumps(meta))
            (tmp_path / "config.json").write_text(json.dumps({"currentContext": "there"}))
            patch.setenv("DOCKER_CONFIG", str(tmp_path))
            assert target.require("d1") == record
            server.shutdown()
            server.server_close()
            with pytest.raises(EngineNotRunning, match=address.replace(".", r"\.")):
                target.names()
    assert answer(target, record) == 2.0


# The package docker leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_engine_that_does_not_run_or_is_not_ours(
    target: DockerTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineNotRunning, match=r"none\.sock"):
        target.names()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(EngineNotRunning, match=r"127\.0\.0\.1:9"):
        target.names()
    monkeypatch.undo()
    gc.collect()


def test_socket_without_permission(engine: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without rights")
    code = (
        "import os; import docker.context; from mlflow_deploy.targets.docker import DockerTarget\n"
        "from mlflow_deploy.images.errors import EnginePermission\n"
        "target = DockerTarget(namespace='nobody')\n"
        "target.names()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: target.names()\n"
        "except EnginePermission as error: print(error.text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "group `docker`" in done.stdout, done.stderr
