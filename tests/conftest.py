"""Fixtures for all tests: a private state folder, a tracking store, and the trained flight-delay model."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.targets.local import LocalTarget
from mlflow_deploy.targets.supervisor import Supervisor
from tests.engine import archives, real_engine

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Take Ctrl-C as in a terminal, and so do all programs that are started from here.

    A shell starts what runs in its background with the interrupt ignored, which programs inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A run in MLflow for each change of a deployment is asked for by the tests that look at it.
    os.environ.setdefault("MLFLOW_DEPLOY_RECORD_SECONDS", "0")
    # A second program beside each MLflow server, which runs what no test asks for.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses the container engine, which is one for all: such tests must not meet each other."""
    if "docker" in item.path.name or {"engine", "real_engine"} & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.engine)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private state folder; whatever runs in it is stopped at the end."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(folder))
    yield folder
    Supervisor(folder / "local").shut_down()


@pytest.fixture
def target(home: Path) -> LocalTarget:
    """The local target in a private state folder."""
    return LocalTarget(home)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine; tests are skipped, with the reason, when none answers."""
    with real_engine() as client:
        before = archives(client)
        yield client
        # They outlive their deployments on purpose, but not the tests.
        for volume in archives(client) - before:
            client.api.remove_volume(volume)


@pytest.fixture(scope="session")
def with_locks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Gives state folders the locks of all others of this session: resolving one takes half a minute."""
    kept = tmp_path_factory.mktemp("locks")

    def linked(home: Path) -> str:
        (home / "images").mkdir(parents=True)
        (home / "images" / "locks").symlink_to(kept)
        return str(home)

    return linked


def load_project(name: str, *modules: str) -> dict[str, Any]:
    """Modules of projects/NAME, which is a folder of scripts and not a package."""
    folder = ROOT / "projects" / name
    sys.path.insert(0, str(folder))
    try:
        return {module: importlib.import_module(module) for module in modules}
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking store and registry in SQLite, set for this process and all it starts."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_REGISTRY_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("tests")
        yield uri


@pytest.fixture(scope="session")
def flight_model(tracking: str) -> Any:
    """`flight-delay` version 1, trained on real flights and registered."""
    train = load_project("flight_delay", "train")["train"]
    return train.train(max_iter=20)
