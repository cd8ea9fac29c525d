"""Monitors come with every deployment: windows after traffic, in MLflow too, and none twice after kill -9."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.lifecycle.release import reconcile
from mlflow_deploy.monitoring.landing import MONITORS_TAG, WINDOW_TAG, experiment_name
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers, kill_all, processes_of
from tests.e2e.load import quiet
from tests.unit.monitoring.monitored import START, capture, rows
from tests.waiting import eventually

BIN = Path(sys.executable).parent
WINDOW = 5
CONFIG = {
    "gateway": "none",
    "monitor.window": f"{WINDOW}s",
    "monitor.min_rows": "50",
    "monitor.reference_rows": "600",
    "monitor.evidently": "never",
    "capture.flush_seconds": "0.1",
}


@pytest.fixture
def client(home: Path, iris_models: str) -> Iterator[Any]:
    return get_deploy_client("local")


def data_of(home: Path, name: str = "d1") -> Path:
    return home / "local" / "deployments" / name / "data"


def job_of(home: Path) -> list[psutil.Process]:
    """The waiting job, without the processes of its rounds."""
    found = []
    for each in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each] if "watch" in each.cmdline() else []
    return found


def typed(line: str) -> Any:
    tool, *words = line.split()
    done = subprocess.run([BIN / tool, *words], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_create_attaches_both_monitors_and_kill_9_loses_and_doubles_nothing(
    client: Any, home: Path, iris_rows: Any
) -> None:
    made = client.create_deployment("d1", "models:/iris/1", config=CONFIG)
    assert made["monitors"] == {"job": "running", "kinds": ["drift", "performance"], "window": "5s"}
    results = ResultStore(data_of(home))
    sent = 0

    def asked(windows: int) -> bool:
        nonlocal sent
        assert answers(made["url"], iris_rows)
        sent += len(iris_rows)
        full = [each for each in results.results(1, "performance") if each.rows]
        return len(full) >= windows

    eventually(lambda: asked(2), 60, "two windows with rows")
    (job,) = job_of(home)
    killed = job.pid
    job.kill()
    eventually(lambda: [each.pid for each in job_of(home)] not in ([], [killed]), 30, "the job is back")
    eventually(lambda: asked(4), 60, "windows after the kill")
    eventually(lambda: results.latest(1, "drift").rows == 0, 60, "a window without rows after the last one")
    typed("mlflow-deploy monitor run d1 --json")

    for kind in ("drift", "performance"):
        found = results.results(1, kind, superseded=True)
        assert max(Counter(each.start for each in found).values()) == 1
        assert sum(each.rows for each in found) == sent
        assert "error" not in {each.state for each in found}
        assert all(each.run_id for each in found if each.rows)
    assert "ok" in {each.state for each in results.results(1, "drift")}

    status = typed("mlflow-deploy monitor status d1 --json")
    assert (status["job"], [each["kind"] for each in status["monitors"]]) == (
        "running", ["drift", "performance"],
    )  # fmt: skip
    _in_mlflow(results, made["created_at"])


def _in_mlflow(results: ResultStore, created_at: str) -> None:
    store = mlflow.MlflowClient()
    experiment = store.get_experiment_by_name(experiment_name("local", "d1"))
    # Other deployments of this name had their windows there before.
    own = [f"tags.`{tag}` LIKE 'd1/{created_at}/%'" for tag in (WINDOW_TAG, MONITORS_TAG)]
    runs = [
        run for each in own for run in store.search_runs([experiment.experiment_id], each, max_results=1000)
    ]
    keys = Counter(run.data.tags[WINDOW_TAG] for run in runs if WINDOW_TAG in run.data.tags)
    full = [each for each in results.results(1) if each.rows]
    assert len(keys) == len(full)
    assert set(keys.values()) == {1}
    (parent,) = [run for run in runs if MONITORS_TAG in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(full)
    logged = [each for each in results.results(1, "drift") if each.run_id]
    series = store.get_metric_history(parent.info.run_id, "drift.rows")
    assert len({point.step for point in series}) == len(series) >= len(logged)
    tags = store.get_model_version("iris", "1").tags
    assert tags["monitor.drift"] in ("ok", "warning", "alert")
    assert "/" in tags["monitor.drift.window"]


@pytest.mark.slow
def test_monitors_can_be_refused_and_come_back_and_go_with_the_deployment(client: Any, home: Path) -> None:
    assert client.create_deployment("d1", "models:/iris/1", config={"gateway": "none", "monitor": "none"})[
        "monitors"
    ] == {"job": "off", "kinds": [], "window": "1h"}
    assert job_of(home) == []
    updated = client.update_deployment("d1", config={"monitor.kinds": "drift", "monitor.window": "1d"})
    assert updated["monitors"] == {"job": "running", "kinds": ["drift"], "window": "1d"}
    assert len(job_of(home)) == 1
    _past_windows_are_judged_once(home)
    kill_all(home)
    eventually(lambda: not processes_of(home), 10, "all processes are gone")
    reconcile(LocalTarget(), quiet)
    eventually(lambda: len(job_of(home)) == 1, 10, "up brings the job back")
    client.delete_deployment("d1")
    eventually(lambda: job_of(home) == [], 10, "the job went with its deployment")
    assert not data_of(home).exists()


def _past_windows_are_judged_once(home: Path) -> None:
    """By the command alone: the job waits for the end of the day."""
    days = [datetime.now(UTC).replace(hour=12, minute=0) - timedelta(days=ago) for ago in (3, 2)]
    for day in days:
        moved, _ = rows(300, int((day - START) / timedelta(hours=1)))
        capture(data_of(home), moved, f"{day:%Y%m%d}", revision=2)
    first, second = (typed("mlflow-deploy monitor backfill d1 --json")["results"] for _ in range(2))
    assert [(each["kind"], each["revision"], each["start"][:10], each["rows"]) for each in first] == [
        ("drift", 2, f"{day:%Y-%m-%d}", 300) for day in days
    ]
    assert second == []
    kept = ResultStore(data_of(home)).results(2, "drift", superseded=True)
    assert [(each.start, each.number) for each in kept] == [(each["start"], 1) for each in first]


def test_a_waiting_job_is_small(client: Any, home: Path) -> None:
    client.create_deployment("d1", "models:/iris/1", config={"gateway": "none"})
    eventually((data_of(home) / "monitor" / "exporter.json").exists, 20, "the job goes round")
    (job,) = job_of(home)
    assert job.memory_info().rss < 64 * 1024**2
