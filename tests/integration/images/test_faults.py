"""What can go wrong with images: one clear line each, and nothing half made."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeployError
from mlflow_deploy.files import sha256_file
from mlflow_deploy.images import labels
from mlflow_deploy.images.builder import BuiltImage, build_image, pull_image, push_image
from mlflow_deploy.images.context import plan_image
from mlflow_deploy.images.errors import (
    BaseImageNotFound,
    BaseImageUnsuitable,
    BuildFailed,
    EngineNotRunning,
    ImageNameTaken,
    ImageNotFound,
    IndexUnreachable,
    RegistryRefused,
    RequirementsUnresolved,
)
from tests import engine as engines
from tests.integration.images.conftest import BASE, MARK, build, make_spec
from tests.wheels import small_lock, tiny_wheel

ROOT = Path(__file__).resolve().parents[3]
SECRET = "s3cret-t0ken-of-the-index"


def silent(line: str) -> None:
    """Progress that nobody looks at."""


def left(engine: Any, digest: str) -> tuple[set[str], set[str]]:
    """Ids of all images, also unnamed ones, and of all containers that came from building on a runtime."""
    wanted = {"label": f"{labels.RUNTIME}={digest}"}
    images = engine.api.images(filters=wanted)
    return {each["Id"] for each in images}, {
        each["Id"] for each in engine.api.containers(all=True, filters=wanted)
    }


def refused(engine: Any, kind: type[DeployError], bundle: Bundle, **settings: Any) -> str:
    """The one line that a build ends with; nothing of it is left on the engine."""
    spec = make_spec(**settings)
    digest = plan_image(bundle, spec, silent).runtime_digest
    before = left(engine, digest)
    with pytest.raises(kind) as caught:
        build_image(bundle, spec, silent)
    assert left(engine, digest) == before
    assert "\n" not in caught.value.text
    return caught.value.text


def unresolved(kind: type[DeployError], bundle: Bundle, **settings: Any) -> str:
    """The one line that ends a build before anything is sent to the engine."""
    with pytest.raises(kind) as caught:
        build_image(bundle, make_spec(**settings), silent)
    return caught.value.text


def test_a_base_image_that_does_not_exist(engine: Any, onnx_bundle: Bundle, tmp_path: Path) -> None:
    base = {**small_lock(tmp_path), "base_image": "localhost:1/no/such-base:1"}
    text = refused(engine, BaseImageNotFound, onnx_bundle, **base)
    assert "'localhost:1/no/such-base:1' is not on the engine and cannot be pulled" in text


def test_a_base_image_without_python(engine: Any, onnx_bundle: Bundle, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    name = f"mlflow-deploy-test-empty:{MARK}"
    engine.api.import_image_from_data(archive.getvalue(), repository=name, changes=["CMD x"])
    try:
        base = {**small_lock(tmp_path), "base_image": name}
        assert "it has no python3" in refused(engine, BaseImageUnsuitable, onnx_bundle, **base)
    finally:
        engine.images.remove(name, force=True)


def test_a_build_that_fails_half_way(engine: Any, onnx_bundle: Bundle, tmp_path: Path) -> None:
    """apt finds nothing behind this proxy, after the first stage is done."""
    text = refused(
        engine, BuildFailed, onnx_bundle, **small_lock(tmp_path),
        system_packages="no-such-package", http_proxy="http://127.0.0.1:1",
    )  # fmt: skip
    assert "could not be built" in text
    assert "no-such-package" in text


def test_requirements_that_do_not_resolve(engine: Any, onnx_bundle: Bundle) -> None:
    text = unresolved(RequirementsUnresolved, onnx_bundle, pip_args="--no-index --isolated")
    assert "No matching distribution found for granian" in text


def test_an_index_that_does_not_answer(engine: Any, onnx_bundle: Bundle) -> None:
    url = f"http://user:{SECRET}@127.0.0.1:1/simple"
    text = unresolved(
        IndexUnreachable, onnx_bundle, index_url=url, pip_args="--retries 1", extra_requirements="xyz"
    )
    assert "does not answer" in text
    assert SECRET not in text


def test_a_name_that_is_taken(engine: Any, onnx_bundle: Bundle) -> None:
    engine.images.get(BASE).tag("mlflow-deploy-test-taken", MARK)
    name = f"mlflow-deploy-test-taken:{MARK}"
    try:
        taken = engine.images.get(name).id
        text = refused(engine, ImageNameTaken, onnx_bundle, repository="mlflow-deploy-test-taken", tag=MARK)
        assert f"The image name {name} is taken" in text
        assert engine.images.get(name).id == taken
    finally:
        engine.images.remove(name)


@pytest.mark.parametrize(
    ("address", "why"),
    [("unix:///no/such.sock", "its socket does not exist"), ("tcp://127.0.0.1:1", "nothing listens")],
)
def test_no_engine(monkeypatch: pytest.MonkeyPatch, onnx_bundle: Bundle, address: str, why: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(EngineNotRunning) as caught:
        build_image(onnx_bundle, make_spec(), silent)
    text = caught.value.text
    assert address in text
    assert why in text
    # The docker package leaves the socket of a failed connection to the garbage collector.
    del caught
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights on the socket")
def test_no_permission_on_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o600)
        for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(folder.stat().st_mode | 0o011)
        code = (
            "import os, docker, docker.context, requests; import mlflow_deploy.images.engine as engine\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try:\n  engine.connect().__enter__()\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        environment = {**os.environ, "DOCKER_HOST": f"unix://{path}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("EnginePermission You may not talk to the Docker engine"), done


# --- registries --------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a real registry that is open for anyone."""
    with engines.registry(tmp_path, closed=False) as address:
        yield address


@pytest.mark.slow
def test_push_and_pull(engine: Any, tiny_image: BuiltImage, registry: str) -> None:
    name = f"{registry}/models/adder:1"
    engine.images.get(tiny_image.name).tag(f"{registry}/models/adder", "1")
    try:
        digest = push_image(name, silent)
        assert digest.startswith(f"{registry}/models/adder@sha256:")
        engine.images.remove(name)
        with pytest.raises(RegistryRefused, match="did not pull"):
            pull_image(f"{registry}/models/adder:2", silent)
        pull_image(name, silent)
        assert engine.images.get(name).id == tiny_image.id
    finally:
        engine.images.remove(name, force=True)


def test_push_to_nowhere(engine: Any, tiny_image: BuiltImage) -> None:
    name = "127.0.0.1:1/models/adder:1"
    with pytest.raises(ImageNotFound):
        push_image(name, silent)
    engine.images.get(tiny_image.name).tag("127.0.0.1:1/models/adder", "1")
    try:
        with pytest.raises(RegistryRefused, match="did not push"):
            push_image(name, silent)
    finally:
        engine.images.remove(name)


# --- secrets -----------------------------------------------------------------------------------------------


class _Index(SimpleHTTPRequestHandler):
    """A package index that wants a password."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
        if self.headers.get("Authorization") == wanted:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def private_index(tmp_path: Path) -> Iterator[str]:
    """Address, with its password, of an index with the package `privatepkg`."""
    tiny_wheel(tmp_path / "index" / "simple" / "privatepkg")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, directory=str(tmp_path / "index")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:{SECRET}@127.0.0.1:{server.server_address[1]}/simple"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_no_secret_is_in_any_layer_or_the_history(
    engine: Any, onnx_bundle: Bundle, private_index: str, image_home: Path, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.txt"
    wheel = next((tmp_path / "index").rglob("*.whl"))
    lock.write_text(f"privatepkg==1.0 --hash=sha256:{sha256_file(wheel)}\n")
    built = build(onnx_bundle, extra_index_urls=private_index, lock=lock, tag="private")
    assert any(each["name"] == "privatepkg" for each in built.sbom["components"])
    image = engine.images.get(built.name)
    assert SECRET not in str(image.history()) + str(image.attrs)
    needle, tail = SECRET.encode(), b""
    for chunk in image.save():
        assert needle not in tail + chunk
        tail = chunk[-len(needle) :]
    folders = (image_home, image_home / "images" / "locks")
    kept = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert kept
    assert all(needle not in text for text in kept)
    assert hashlib.sha256(needle).hexdigest() not in str(kept)
