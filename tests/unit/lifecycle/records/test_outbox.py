"""Telling MLflow takes a short time at most, and what is left is said."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.records import outbox
from mlflow_deploy.lifecycle.records.chain import append
from mlflow_deploy.targets.memory import MemoryTarget
from tests.unit.lifecycle.records.test_chain import draft


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """Two records that MLflow does not have."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path / "home"))
    target = MemoryTarget()
    append(target, "d1", draft(1))
    append(target, "d1", draft(2))
    return target


def test_a_server_that_hangs_is_left_alone(waiting: MemoryTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def hang() -> str:
        free.wait(30)
        return "it answered too late"

    monkeypatch.setattr(outbox, "server_problem", hang)
    begun = time.monotonic()
    done = outbox.flush(waiting, "d1", seconds=0.2)
    assert time.monotonic() - begun < 5
    assert (done.logged, done.left) == (0, 2)
    assert "not done within 0.2 s; a later command does it" in done.text
    # The attempt still holds its lock, so that the next one does not log the same twice.
    assert "another command is logging" in outbox.flush(waiting, "d1", seconds=5).text
    free.set()


def test_a_server_that_is_gone_is_told(waiting: MemoryTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "server_problem", lambda: "nobody is there")
    assert "2 not logged yet: nobody is there" in outbox.flush(waiting, "d1", seconds=5).text
    assert outbox.read_outbox(waiting, "d1").why == "nobody is there"


def test_nothing_is_tried_in_no_time(waiting: MemoryTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outbox.SECONDS_VARIABLE, "0")
    assert outbox.SECONDS_VARIABLE in outbox.flush(waiting, "d1").text
    monkeypatch.setenv(outbox.SECONDS_VARIABLE, "soon")
    with pytest.raises(ConfigError, match="is no number"):
        outbox.record_seconds()
    assert "is no number" in outbox.flush(waiting, "d1").text
