"""The real Docker engine of the tests, its base image, and what a namespace has on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlflow_deploy.errors import DeployError
from mlflow_deploy.images.engine import connect, find_image
from mlflow_deploy.targets import docker_names as keys

BASE = os.environ.get("MLFLOW_DEPLOY_TEST_BASE_IMAGE", "mlflow-deploy-base:test")
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
