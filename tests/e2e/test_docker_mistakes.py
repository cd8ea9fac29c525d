"""What goes wrong on Docker, typed as commands: one clear line each, an exit status, and nothing half made."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.images import labels
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE
from tests import engine as engines
from tests.engine import BASE, things
from tests.wheels import small_lock

BIN = Path(sys.executable).parent
SPACE = f"mistakes-{uuid.uuid4().hex[:8]}"
TAKEN = f"mlflow-deploy-test-taken:{SPACE}"
# As it is, since no conversion is needed to go wrong after it.
CREATE = "mlflow deployments create -t docker --name flights -m models:/iris/1 -C format=pyfunc"
PREFIX = "MLFLOW_DEPLOY_IMAGE_"


@pytest.fixture(scope="module")
def machine(engine: Any, iris_models: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images with one tiny package, which resolve and build fast; a namespace; a folder for all of it."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", str(folder / "home"))
        patch.setenv(NAMESPACE_VARIABLE, SPACE)
        patch.setenv(f"{PREFIX}BASE_IMAGE", BASE)
        for name, value in small_lock(folder).items():
            patch.setenv(PREFIX + name.upper(), str(value))
        yield folder


def left(engine: Any) -> set[str]:
    """All that the engine has of ours: images, also unnamed ones, containers of builds, and deployments."""
    wanted = {"label": labels.KIND}
    made = [*engine.api.images(filters=wanted), *engine.api.containers(all=True, filters=wanted)]
    return {each["Id"] for each in made} | set(things(engine, SPACE))


def refused(line: str, engine: Any = None, *, prefix: tuple[str, ...] = (), **environment: str | None) -> str:
    """The one line that a command ends with; it leaves the engine as it was.

    Args:
        engine: whose images and containers are compared; nothing else may build on it meanwhile.
        prefix: program and options to run the command by.
        environment: variables that differ; None removes one.
    """
    tool, *words = line.split()
    given = {**os.environ, **environment}
    before = left(engine) if engine is not None else set()
    done = subprocess.run(
        [*prefix, str(BIN / tool), *words],
        capture_output=True, text=True, timeout=170,
        env={name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert "Traceback" not in printed, printed
    lines = [text for text in printed.splitlines() if text.startswith("Error:")]
    assert len(lines) == 1, printed
    # Nothing else is printed after it that a reader would have to look through.
    assert printed.splitlines()[-1] == lines[0]
    assert (left(engine) if engine is not None else set()) == before
    return lines[0]


@pytest.mark.parametrize("command", [CREATE, "mlflow-deploy image push models:/iris/1"])
def test_engine_that_does_not_run(machine: Path, command: str) -> None:
    said = refused(command, DOCKER_HOST="unix:///no/such.sock")
    assert "No Docker engine answers at unix:///no/such.sock" in said
    assert "its socket does not exist" in said


def test_no_permission_on_the_socket(machine: Path, tmp_path: Path) -> None:
    path, prefix = tmp_path / "engine.sock", ()
    if os.geteuid() == 0:
        # Root without the right to overlook permissions.
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed (Debian package util-linux)")
        prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        said = refused(CREATE, prefix=prefix, DOCKER_HOST=f"unix://{path}")
    assert "You may not talk to the Docker engine" in said


@pytest.mark.slow
def test_base_image_that_is_not_found(engine: Any, machine: Path) -> None:
    said = refused(f"{CREATE} -C docker.base_image=localhost:1/no/such-base:1", engine)
    assert "The base image 'localhost:1/no/such-base:1' is not on the engine and cannot be pulled" in said


@pytest.mark.slow
def test_requirements_that_do_not_resolve(engine: Any, machine: Path) -> None:
    options = "-C docker.image.extra_requirements=no-such-package==0"
    said = refused(f"{CREATE} {options}", engine, **{f"{PREFIX}LOCK": None})
    assert "The requirements of the image do not resolve" in said
    assert "No matching distribution found for" in said


@pytest.mark.slow
def test_image_name_that_is_taken(engine: Any, machine: Path) -> None:
    engine.images.get(BASE).tag(*TAKEN.split(":"))
    try:
        repository, tag = TAKEN.split(":")
        said = refused(f"{CREATE} -C docker.repository={repository} -C docker.image.tag={tag}", engine)
        assert engine.images.get(TAKEN).id == engine.images.get(BASE).id
    finally:
        engine.images.remove(TAKEN)
    assert f"The image name {TAKEN} is taken" in said


@pytest.mark.slow
def test_full_disk(engine: Any, machine: Path, tmp_path: Path) -> None:
    """The engine's disk has less room than the packages need."""
    lock = small_lock(tmp_path, ballast=80_000_000)
    settings = {PREFIX + name.upper(): str(value) for name, value in lock.items()}
    with engines.small_engine(engine, tmp_path, spare=50_000_000) as small:
        said = refused(CREATE, small, **settings)
        assert small.images.list(filters={"label": labels.KIND}) == []
    assert "No space was left on the disk" in said


@pytest.mark.slow
def test_registry_that_refuses(engine: Any, machine: Path, tmp_path: Path) -> None:
    """It wants a password."""
    with engines.registry(tmp_path, closed=True) as address:
        # The image is built before it is pushed, and stays: another push takes it as it is.
        name = f"{address}/models/iris:{SPACE}"
        options = f"-C repository={address}/models/iris -C tag={SPACE} -C deploy.format=pyfunc"
        try:
            said = refused(f"mlflow-deploy image push models:/iris/1 {options}")
            again = refused(f"mlflow-deploy image push {name}", engine)
        finally:
            runtime = engine.images.get(name).labels[labels.RUNTIME]
            engine.images.remove(name, force=True)
            engine.images.remove(f"mlflow-deploy-runtime:{runtime[7:23]}", force=True)
        assert f"The registry did not push {name}" in said
        assert "docker login" in said
        assert said == again
        assert not (tmp_path / "store").exists()
