"""The real engine, its base image, and the removal of everything that these tests make on it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels
from mlflow_deploy.images.builder import BuiltImage, build_image
from mlflow_deploy.images.engine import docker_errors, find_image
from mlflow_deploy.images.spec import ImageSpec, parse_image_spec
from tests import engine as engines
from tests.engine import BASE
from tests.integration.images.bundles import adder
from tests.wheels import small_lock

TEST_LABEL = "io.mlflow-deploy.test"
MARK = uuid.uuid4().hex
RUNTIMES: set[str] = set()
"""Names of the runtimes that these tests built on."""


@pytest.fixture(scope="session")
def engine(engine: Any) -> Iterator[Any]:
    """A client of the engine, from which all that these tests made is removed."""
    client = engine
    before = {image.id for image in client.images.list(filters={"label": labels.KIND})}
    errors = docker_errors()
    yield client
    for container in client.containers.list(all=True, filters={"label": f"{TEST_LABEL}={MARK}"}):
        container.remove(force=True)
    _remove_images(client)
    for name in RUNTIMES:
        runtime = find_image(client, name)
        if runtime is not None and runtime.id not in before:
            # Something else may have been built on it meanwhile.
            with contextlib.suppress(errors.APIError):
                client.images.remove(name)


def _remove_images(client: Any) -> None:
    """Remove the images of these tests; those built on others go first, which the engine insists on."""
    refusals: list[str] = []
    while images := client.images.list(filters={"label": f"{TEST_LABEL}={MARK}"}):
        before = len(refusals)
        for image in images:
            try:
                client.images.remove(image.id, force=True)
            except docker_errors().ImageNotFound:
                continue
            except docker_errors().APIError as error:
                refusals.append(f"{image.tags or image.id}: {error.explanation}")
        if len(refusals) - before == len(images):
            raise AssertionError(f"images of the tests cannot be removed: {refusals[before:]}")


@pytest.fixture
def small_engine(tmp_path: Path, engine: Any) -> Iterator[Any]:
    """A second real engine, which DOCKER_HOST names, whose disk has room for the base image and little more."""
    with engines.small_engine(engine, tmp_path) as small:
        yield small


@pytest.fixture(scope="session", autouse=True)
def image_home(tmp_path_factory: pytest.TempPathFactory, with_locks: Callable[[Path], str]) -> Iterator[Path]:
    """One state folder for all tests here."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", with_locks(folder))
        for name in list(os.environ):
            if name.startswith("MLFLOW_DEPLOY_IMAGE_"):
                patch.delenv(name)
        yield folder


def make_spec(**settings: Any) -> ImageSpec:
    """A spec on the test's base image, whose images are removed at the end."""
    given = {"base_image": BASE, "torch_index": "", "labels": {TEST_LABEL: MARK}, **settings}
    return parse_image_spec(given, environment={})


def build(bundle: Bundle, **settings: Any) -> BuiltImage:
    """Build an image and print what it cost."""
    built = build_image(bundle, make_spec(**settings), lambda line: None)
    RUNTIMES.add(built.runtime)
    above = (built.bytes_above_base or 0) / 1e6
    print(f"{built.name}: {built.seconds:.1f} s, {above:.1f} MB above its base")
    return built


@pytest.fixture(scope="session")
def make_adder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Bundle]:
    """Makes version N of a registered ONNX model, which adds N."""
    return lambda version: adder(tmp_path_factory.mktemp("adder"), version)


@pytest.fixture(scope="session")
def onnx_bundle(make_adder: Callable[[int], Bundle]) -> Bundle:
    """Version 1 of the ONNX model."""
    return make_adder(1)


@pytest.fixture(scope="session")
def onnx_image(engine: Any, onnx_bundle: Bundle) -> BuiltImage:
    """The image of version 1 of the ONNX model."""
    return build(onnx_bundle)


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of images on a runtime with one tiny package."""
    return small_lock(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_image(engine: Any, onnx_bundle: Bundle, tiny_settings: dict[str, Any]) -> BuiltImage:
    """An image of the same model with one tiny package, for tests that only move images about."""
    return build(onnx_bundle, **tiny_settings)
