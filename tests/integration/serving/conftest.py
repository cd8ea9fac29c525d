"""Bundles and running servers that the serving tests share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from mlflow_deploy.bundle import Bundle
from tests.integration.serving import zoo
from tests.integration.serving.running import Running, running


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zoo.Animal]:
    """Some models of the zoo."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            name: zoo.ZOO[name](tmp_path_factory.mktemp(name))
            for name in ("doubles", "mixed", "tensors", "two_towers", "text", "raising")
        }


@pytest.fixture(scope="session")
def doubles(animals: dict[str, zoo.Animal]) -> Bundle:
    """Gradient boosting on thirty double columns."""
    return animals["doubles"].bundle


@pytest.fixture(scope="session")
def server(doubles: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of `doubles` with two workers and gRPC, shared by tests that do not harm it."""
    with running(
        doubles.path,
        tmp_path_factory.mktemp("server"),
        workers=2,
        grpc=True,
        max_body_bytes=200_000,
        access_log=1.0,
    ) as process:
        yield process
