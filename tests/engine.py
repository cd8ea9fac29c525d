"""The real Docker engine of the tests, its base image, and what a namespace has on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.errors import DeployError
from mlflow_deploy.images.engine import connect, find_image
from mlflow_deploy.images.errors import EngineNotRunning
from mlflow_deploy.targets import docker_names as keys
from tests.waiting import eventually

BASE = os.environ.get("MLFLOW_DEPLOY_TEST_BASE_IMAGE", "mlflow-deploy-base:test")
LARGE_IMAGES = "MLFLOW_DEPLOY_TEST_LARGE_IMAGES"
"""Variable that has the tests build the images that take minutes and gigabytes, too."""
_MAKE_BASE = (
    "mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates,libgomp1 bookworm base.tar "
    f"&& docker import base.tar {BASE}"
)


@contextmanager
def real_engine() -> Iterator[Any]:
    """A client of the engine; tests are skipped, with the reason, when none answers."""
    try:
        connection = connect()
        client = connection.__enter__()
    except DeployError as error:
        pytest.skip(error.text)
    try:
        if find_image(client, BASE) is None:
            pytest.skip(f"The engine has no base image {BASE}. Make it with: {_MAKE_BASE}")
        yield client
    finally:
        connection.__exit__(None, None, None)


def things(engine: Any, namespace: str) -> list[str]:
    """Names of all containers, networks and volumes that a namespace has on the engine."""
    wanted = {"label": [f"{keys.NAMESPACE}={namespace}"]}
    containers = engine.api.containers(all=True, filters=wanted)
    networks, volumes = engine.api.networks(filters=wanted), engine.api.volumes(wanted)["Volumes"] or []
    return [each["Names"][0] for each in containers] + [each["Name"] for each in [*networks, *volumes]]


def archives(engine: Any) -> set[str]:
    """Names of all volumes with documents that outlive their deployments, of every namespace."""
    return {each["Name"] for each in engine.api.volumes({"label": [keys.ARCHIVE]})["Volumes"] or []}


@contextmanager
def small_engine(engine: Any, folder: Path, *, spare: int = 90_000_000) -> Iterator[Any]:
    """A second real engine, which DOCKER_HOST names, whose disk has room for the base image and little more.

    Args:
        folder: takes its files.
        spare: bytes beside the base image.
    """
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("a second engine needs root and dockerd on this machine")
    data = folder / "data"
    data.mkdir()
    # The path of a socket may have 107 characters, and a test's folder may be deep.
    sockets = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
    address = f"unix://{sockets}/small.sock"
    # Loading an image takes its size twice.
    size = 2 * engine.images.get(BASE).attrs["Size"] + spare
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(data)], check=True)
    # In a network of its own: `--bridge none` would remove the bridge of the engine that the machine has.
    command = ["unshare", "--net", "dockerd", "-H", address, "--bridge", "none", "--iptables=false"]
    command += [
        "--data-root",
        str(data),
        "--exec-root",
        str(sockets / "exec"),
        "--pidfile",
        str(folder / "pid"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", address)
            eventually(lambda: _answers(process, folder / "log"), 60, "the second engine answers")
            with connect() as small:
                small.images.load(engine.images.get(BASE).save(named=BASE))
                yield small
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["umount", "-l", str(data)], check=False)
        shutil.rmtree(sockets, ignore_errors=True)


def _answers(process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        with connect():
            return True
    except EngineNotRunning:
        return False


@contextmanager
def registry(folder: Path, *, closed: bool) -> Iterator[str]:
    """The address of a real registry.

    Args:
        folder: takes its files.
        closed: it wants a password that nobody knows.
    """
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.skip("docker-registry is not installed (Debian package docker-registry)")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    config = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/store}}}}\n"
    config += f"http: {{addr: '127.0.0.1:{port}'}}\n"
    if closed:
        (folder / "htpasswd").write_text(
            "user:$2y$05$abcdefghijklmnopqrstuu5Lhvo0gI1zHBAEwQ4aI0bWX0mCgU6Aq\n"
        )
        config += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    (folder / "config.yml").write_text(config)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([binary, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "registry.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
