"""Runs images as locked down as a careful operator would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from tests.integration.images.conftest import MARK, TEST_LABEL


@dataclass
class Running:
    """A container, its address, and how long it took from its start to the first good /ping, in seconds."""

    container: Any
    url: str
    ready_seconds: float

    def answers_its_example(self, bundle: Bundle) -> None:
        """Send the bundle's example and compare the answer with the native model's."""
        example = bundle.document("example.json")
        assert example is not None
        response = httpx.post(f"{self.url}/invocations", json=example["request"], timeout=30)
        assert response.status_code == 200, response.text
        assert _numbers(response.json()["predictions"]) == pytest.approx(
            _numbers(example["predictions"]), abs=1e-3
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and output of a command in the container."""
        status, output = self.container.exec_run(list(command))
        return int(status), output.decode()


HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 256,
    "mem_limit": "1g",
}


@contextmanager
def started(engine: Any, image: str, *, seconds: float = 60, **options: Any) -> Iterator[Running]:
    """Run an image until the block ends, entered when it is ready."""
    container = engine.containers.create(
        image,
        labels={TEST_LABEL: MARK},
        ports={"8080/tcp": ("127.0.0.1", None)},
        **{**HARDENED, **options},
    )
    try:
        begun = time.monotonic()
        container.start()
        container.reload()
        port = container.ports["8080/tcp"][0]["HostPort"]
        url = f"http://127.0.0.1:{port}"
        while not _ready(url):
            container.reload()
            assert container.status == "running", container.logs().decode()
            assert time.monotonic() - begun < seconds, container.logs().decode()
            time.sleep(0.02)
        yield Running(container, url, time.monotonic() - begun)
    finally:
        container.remove(force=True)


def _numbers(answer: Any) -> list[float]:
    """All numbers of an answer in order, in whatever lists and records."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    return [number for part in answer for number in _numbers(part)] if isinstance(answer, list) else [answer]


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
