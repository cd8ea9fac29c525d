"""Bundles, and a lock that needs no index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.bundle import Bundle, ModelSource, Servable, write_bundle
from mlflow_deploy.images.spec import ImageSpec, parse_image_spec
from tests.bundles import adder_bundle

LOCK = "".join(
    f"{name}==1.0 --hash=sha256:{character * 64}\n"
    for name, character in (("numpy", "a"), ("onnxruntime", "b"))
)


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private state folder."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path / "home"))


@pytest.fixture
def graph(tmp_path: Path) -> Bundle:
    """An ONNX bundle."""
    return adder_bundle(tmp_path / "store", tmp_path / "work", 1.0)


@pytest.fixture
def locked_spec(tmp_path: Path) -> ImageSpec:
    """A spec with a lock of its own."""
    (tmp_path / "lock.txt").write_text(LOCK)
    return make_spec(lock=tmp_path / "lock.txt")


def make_spec(**settings: Any) -> ImageSpec:
    """A spec that nothing in the environment changes."""
    return parse_image_spec(settings, environment={})


@pytest.fixture
def make_pyfunc(tmp_path: Path) -> Callable[[Mapping[str, str]], Bundle]:
    """Makes a pyfunc bundle of files by name."""

    def make(files: Mapping[str, str]) -> Bundle:
        content = tmp_path / "model"
        content.mkdir()
        for name, text in files.items():
            (content / name).write_text(text)
        return write_bundle(
            tmp_path / "store",
            model=ModelSource(uri="models:/m/1", name="m", version="1"),
            servable=Servable(kind="pyfunc", path="servable"),
            content=content,
            documents={},
        )

    return make
