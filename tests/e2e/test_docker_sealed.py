"""A sealed model on Docker: the key goes into the containers and into no image; without it nothing starts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import StartFailed
from mlflow_deploy.flavors import sealed
from mlflow_deploy.security.keys import new_secret
from mlflow_deploy.security.seal_format import MAGIC
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE, DockerTarget
from tests.e2e.conftest import answers
from tests.engine import BASE, things
from tests.waiting import eventually

SPACE = f"sealed-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def space(
    engine: Any, home: Path, with_locks: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A namespace of its own on the engine, which is left empty."""
    with_locks(home)
    monkeypatch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
    monkeypatch.setenv(NAMESPACE_VARIABLE, SPACE)
    yield SPACE
    for name in DockerTarget().names():
        DockerTarget().remove(name)


@pytest.mark.slow
def test_key_is_in_the_container_and_in_no_image(
    engine: Any, space: str, iris_models: str, iris_rows: Any, tmp_path: Path
) -> None:
    own, other = tmp_path / "own.key", tmp_path / "other.key"
    secret = new_secret(own).secret
    new_secret(other)
    sealed.log_model(
        f"models:/{iris_models}/1", name="iris", registered_model_name="iris-secret", keys=f"file:{own}"
    )
    client = get_deploy_client("docker")
    with pytest.raises(StartFailed, match="sealed for another key"):
        client.create_deployment(
            "iris", "models:/iris-secret/1", config={"serving.seal_key": f"file:{other}"}
        )
    assert things(engine, space) == []
    made = client.create_deployment(
        "iris", "models:/iris-secret/1", config={"serving.seal_key": f"file:{own}"}
    )
    assert made["format"] == "onnx"
    native = mlflow.pyfunc.load_model(f"models:/{iris_models}/1").predict(iris_rows)
    np.testing.assert_array_equal(
        client.predict("iris", iris_rows).get_predictions("ndarray").ravel(), native
    )

    [container] = engine.containers.list(
        filters={"label": [f"{keys.NAMESPACE}={space}", f"{keys.ROLE}=revision"]}
    )
    # As it was written, in base64, and as it is in memory.
    traces = [own.read_bytes().strip(), secret, secret.hex().encode()]
    told = json.dumps([container.attrs, container.image.attrs, container.image.history()]).encode()
    assert not [trace for trace in traces if trace in told]
    # The sealed model is in the image, and no form of the key.
    assert within(container.image.save(), [*traces, MAGIC]) == {MAGIC}

    # The engine starts it again, with the copy: the file is gone here.
    own.unlink()
    engine.api.restart(container.id)
    eventually(lambda: answers(made["url"], iris_rows), 30, "answers after a restart")
    client.delete_deployment("iris")
    assert things(engine, space) == []


def within(parts: Iterable[bytes], traces: list[bytes]) -> set[bytes]:
    """Those of the traces that are in a stream of bytes."""
    found: set[bytes] = set()
    longest, end = max(map(len, traces)), b""
    for part in parts:
        window = end + part
        found |= {trace for trace in traces if trace in window}
        end = window[-longest:]
    return found
