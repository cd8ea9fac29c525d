"""What a candidate's own monitor does to the rollout that goes on: it pauses it, or takes it back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.errors import RolloutFailed
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.history import history
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers
from tests.e2e.load import quiet
from tests.waiting import eventually

CONFIG = {
    "gateway": "envoy",
    # Of the stable revision, which shall find nothing: the candidate's own drift monitor comes with it.
    "monitor.kinds": "performance",
    "capture.flush_seconds": "0.1",
    # Only the monitor shall speak against the candidate.
    "analysis.max_latency_ratio": "0",
    "analysis.max_answer_shift": "0",
}
CANARY = {
    "strategy": "canary",
    "canary_steps": "10",
    "step_seconds": "600",
    "monitor.kinds": "drift",
    "monitor.window": "2s",
    "monitor.min_rows": "50",
    "monitor.evidently": "never",
    "monitor.action.after_windows": "1",
}


@contextmanager
def traffic(url: str, rows: Any) -> Iterator[None]:
    """Send the rows on and on, each time over a connection of its own."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.02):
            assert answers(url, rows)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_an_alert_of_the_candidate_pauses_or_ends_its_rollout(
    home: Path, iris_models: str, iris_rows: Any, tmp_path: Path
) -> None:
    reference = tmp_path / "reference.parquet"
    iris_rows.to_parquet(reference)
    target = LocalTarget()
    url = release.create(target, "steered", "models:/iris/1", config=CONFIG, progress=quiet)["url"]
    told: list[str] = []

    def update(action: str) -> None:
        config = {**CANARY, "monitor.reference": str(reference), "monitor.action.drift": action}
        try:
            release.update(target, "steered", "models:/iris/2", config=config, progress=told.append)
        except RolloutFailed as error:
            told.append(f"failed: {error.text}")

    with traffic(url, iris_rows + 3):
        updating = threading.Thread(target=update, args=["pause-rollout"])
        updating.start()
        eventually(lambda: any("paused" in line for line in told), 60, "the alert pauses the rollout")
        assert target.require("steered").weights == {1: 90, 2: 10}
        assert updating.is_alive(), "it waits for a person"
        release.steer(target, "steered", "abort")
        updating.join(180)
        told.clear()

        update("rollback")
    assert told[-1].startswith("failed: ")
    record = target.require("steered")
    assert record.weights == {1: 100}
    assert record.last_rollout is not None
    assert (record.last_rollout.candidate, record.last_rollout.outcome) == (3, "rolled back")

    def noted() -> list[tuple[str, str, int]]:
        """What the monitors wrote, which had to wait until the rollout let go of the record."""
        found = [each for each in history(target, "steered") if "drift alert of revision" in each["reason"]]
        return sorted((each["action"], each["outcome"], each["revision"]) for each in found)

    eventually(lambda: len(noted()) >= 2, 60, "the history tells both")
    assert noted() == [("pause-rollout", "done", 2), ("rollback", "done", 3)]
