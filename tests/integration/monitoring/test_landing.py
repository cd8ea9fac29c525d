"""Results land in MLflow once: killed half way they are finished, and they wait while MLflow is down."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import mlflow
import msgspec
import pytest

from mlflow_deploy.monitoring.evidently_report import report_of
from mlflow_deploy.monitoring.hand_over import lay_down, mark, marks_of, waiting
from mlflow_deploy.monitoring.jobs import run_due
from mlflow_deploy.monitoring.landing import MONITORS_TAG, WINDOW_TAG, experiment_name, land
from mlflow_deploy.monitoring.run_content import column_key
from mlflow_deploy.monitoring.store import ResultStore
from tests.unit.monitoring.monitored import START, capture, order, rows


@pytest.fixture
def data(tmp_path: Path, tracking: str) -> Path:
    """A data folder with an hour that is quiet, one that is not, and one without rows; nothing has landed."""
    folder = tmp_path / "data"
    order(folder, uri=tracking, **{"monitor.evidently": "auto"})
    capture(folder, rows(400, 0)[0], "a")
    capture(folder, rows(400, 1, shift=1.0)[0], "b")
    run_due(folder, now=START + timedelta(hours=3, minutes=5))
    yield folder
    experiment = mlflow.get_experiment_by_name(experiment_name("local", "d1"))
    if experiment is not None:
        client = mlflow.MlflowClient()
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)


def runs() -> list:
    experiment = mlflow.get_experiment_by_name(experiment_name("local", "d1"))
    return list(mlflow.MlflowClient().search_runs([experiment.experiment_id]))


@pytest.mark.slow
def test_a_run_for_each_window_with_series_pages_and_inputs(data: Path) -> None:
    assert land(data, evidently=report_of).logged == 6
    parent = next(run for run in runs() if MONITORS_TAG in run.data.tags)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(parent.info.run_id, "drift.statistic/x")
    assert [point.step for point in history] == [0, 1]
    assert history[1].value > history[0].value
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    alerts = [run for run in children if run.data.tags["mlflow_deploy.state"] == "alert"]
    # Where the rows begin within a window is chance, so that the last one may hold too few for a report.
    moved = max(alerts, key=lambda run: run.data.metrics["drift.rows"])
    files = {each.path for each in client.list_artifacts(moved.info.run_id, "monitor")}
    assert {path.rpartition(".")[2] for path in files} == {"json", "html"}
    assert "monitor/evidently.html" in files, moved.data.tags
    assert {each.dataset.name for each in moved.inputs.dataset_inputs} == {"d1-captured", "d1-reference"}
    assert "x: " in moved.data.tags["mlflow.note.content"]
    assert all(each.run_id for each in ResultStore(data).results())


def test_killed_after_the_run_was_made_it_is_found_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "mark_logged", _dies)
        assert "killed" in land(data).problem
        assert "killed" in land(data).problem
    assert land(data).logged == 6
    assert land(data).logged == 0
    keys = Counter(run.data.tags[WINDOW_TAG] for run in runs() if WINDOW_TAG in run.data.tags)
    assert sorted(keys.values()) == [1, 1, 1, 1]
    parent = next(run for run in runs() if MONITORS_TAG in run.data.tags)
    assert len(mlflow.MlflowClient().get_metric_history(parent.info.run_id, "drift.rows")) == 3


def test_results_wait_while_mlflow_is_down(tmp_path: Path) -> None:
    order(tmp_path, uri="http://127.0.0.1:9")
    capture(tmp_path, rows(300, 0)[0], "a")
    run_due(tmp_path, now=START + timedelta(hours=1, minutes=5))
    report = land(tmp_path)
    assert (report.logged, report.left) == (0, 2)
    assert "does not answer" in report.problem
    assert [each.run_id for each in ResultStore(tmp_path).results()] == ["", ""]


@pytest.mark.parametrize("column", ["a/b", "..", "", "größe (cm)", "x" * 400])
def test_any_column_has_a_metric_name_that_mlflow_takes(column: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(f"drift.statistic/{column_key(column)}")


def _dies(*_: object) -> None:
    raise RuntimeError("killed")


def test_results_that_a_job_cannot_log_are_handed_over_once(
    data: Path, tmp_path: Path, tracking: str
) -> None:
    handed = msgspec.json.decode(msgspec.json.encode(waiting(data)))
    lay_down(tmp_path / "here", handed, {1: (tracking, tracking)})
    assert land(tmp_path / "here").logged == 6
    assert mark(data, marks_of(tmp_path / "here")) == 6
    assert waiting(data).results == []
    assert land(data).logged == 0
