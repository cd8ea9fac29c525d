"""Bring results into MLflow: a run for each window below the run of its revision, series, pages, tags.

Results wait in their files until they were logged; a run that a kill left half made is found by its tag and
finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.config_monitor import duration_seconds
from mlflow_deploy.files import locked
from mlflow_deploy.monitoring.jobs import spec_of, window_of
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.store import KINDS, ResultStore
from mlflow_deploy.monitoring.windows import EPOCH, row_count
from mlflow_deploy.targets.base_monitor import MonitoredRevision, MonitorOrder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

PREFIX = "mlflow_deploy."
WINDOW_TAG = f"{PREFIX}window"
"""Key of a window's result; one run has it."""
MONITORS_TAG = f"{PREFIX}monitors"
"""Key of a revision's monitors; the parent of its windows' runs has it."""
VERDICTS = ("ok", "warning", "alert")

_BATCH = 900
_LOCK = "land.lock"
_HEALTH_SECONDS = 2.0
_RELEASE_SECONDS = 3600.0
"""How long before its deployment was made a release may have begun."""
_LOG = logging.getLogger("mlflow_deploy.monitor")

Evidently = Callable[[Path, MonitoredRevision, WindowResult], str]
"""Makes Evidently's report of a window; returns it, empty when it is not wanted."""


@dataclass(frozen=True, kw_only=True)
class LandReport:
    """What was logged.

    Attributes:
        logged: results that were logged now.
        left: results that wait.
        problem: why they wait, or what else went wrong; empty when all is well.
    """

    logged: int = 0
    left: int = 0
    problem: str = ""


def experiment_name(target: str, deployment: str) -> str:
    """The experiment of a deployment; its release records are there too."""
    return f"mlflow-deploy/{target}/{deployment}"


def land(data: Path, *, evidently: Evidently | None = None) -> LandReport:
    """Log all results that wait, the oldest first.

    Args:
        data: the deployment's data folder.
        evidently: makes Evidently's report of a window; None = no such report.
    """
    order = read_order(data)
    if order is None:
        return LandReport()
    results = ResultStore(data)
    # The job and a command may both be at it, and neither would find the run that the other is about to make.
    with locked(results.folder / _LOCK, wait=True):
        return _land(data, order, results, evidently)


def _land(data: Path, order: MonitorOrder, results: ResultStore, evidently: Evidently | None) -> LandReport:
    waiting = {
        revision.number: [
            each for each in results.results(revision.number, superseded=True) if not each.run_id
        ]
        for revision in order.revisions
    }
    logged, problem = 0, ""
    for revision in order.revisions:
        if not waiting[revision.number]:
            continue
        problem = problem or reach(revision)
        if problem:
            break
        try:
            for _ in _land_revision(data, order, revision, results, waiting[revision.number], evidently):
                logged += 1
        except Exception as error:  # noqa: BLE001 - stores raise what their clients raise; the text is reported
            problem = f"MLflow did not take the results: {' '.join(str(error).split())[:300]}"
    total = sum(len(each) for each in waiting.values())
    return LandReport(logged=logged, left=total - logged, problem=problem)


def reach(revision: MonitoredRevision) -> str:
    """Set the MLflow server of a revision; returns why it cannot be asked now, empty when it can."""
    import mlflow
    import requests

    uri = revision.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return "no MLflow tracking server is set; set monitor.tracking_uri or MLFLOW_TRACKING_URI"
    if uri.startswith(("http://", "https://")):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=_HEALTH_SECONDS)
        except requests.RequestException as error:
            cause = error.__context__ or error
            return f"the MLflow server at {uri} does not answer: {getattr(cause, 'reason', cause)}"
    elif uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return f"there is no MLflow database {uri.removeprefix('sqlite:///')}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(revision.registry_uri or uri)
    return ""


# --- runs --------------------------------------------------------------------------------------------------


def _land_revision(
    data: Path,
    order: MonitorOrder,
    revision: MonitoredRevision,
    results: ResultStore,
    waiting: list[WindowResult],
    evidently: Evidently | None,
) -> Iterator[WindowResult]:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = _experiment(client, order)
    parent = _parent(client, experiment, order, revision)
    steps = _Steps(revision, results)
    for result in sorted(waiting, key=lambda each: (each.start, each.kind, each.number)):
        step = steps.step(result)
        _log_metrics(client, parent, _series(result, step))
        run_id = parent
        if result.rows:
            run_id = _window_run(client, experiment, parent, order, revision, result)
            _log_metrics(client, run_id, _series(result, step))
            client.log_inputs(run_id, _datasets(order, revision, result))
            _log_files(client, run_id, data, revision, results, result, evidently)
            client.set_terminated(run_id, end_time=_milliseconds(result.finished_at))
        yield results.mark_logged(result, run_id)
    for kind in KINDS:
        latest = results.latest(revision.number, kind)
        if latest is not None and any(each.kind == kind for each in waiting):
            _tag_version(client, revision, latest)
            client.set_tag(parent, f"monitor.{kind}", latest.state)
            client.set_tag(parent, f"monitor.{kind}.window", f"{latest.start}/{latest.end}")
    status = "RUNNING" if revision.active else "FINISHED"
    client.update_run(parent, status=status)


def _experiment(client: MlflowClient, order: MonitorOrder) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    name = experiment_name(order.target, order.deployment)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    uri, location = mlflow.get_tracking_uri(), None
    if uri.startswith("sqlite:///"):
        # Without a server the artifacts would land below wherever this process happens to run.
        location = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Another process made it meanwhile.
        made = client.get_experiment_by_name(name)
        if made is None:
            raise
        return str(made.experiment_id)


def _parent(client: MlflowClient, experiment: str, order: MonitorOrder, revision: MonitoredRevision) -> str:
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    key = _key(order, revision)
    found = client.search_runs([experiment], f"tags.`{MONITORS_TAG}` = '{key}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        # The release record may have waited for MLflow longer than the first window.
        nested = MLFLOW_PARENT_RUN_ID in found[0].data.tags
        release = "" if nested else _release(client, experiment, order, revision)
        if release:
            client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, release)
        return run_id
    release = _release(client, experiment, order, revision)
    tags = {
        **({MLFLOW_PARENT_RUN_ID: release} if release else {}),
        MONITORS_TAG: key,
        f"{PREFIX}deployment": order.deployment,
        f"{PREFIX}revision": str(revision.number),
    }
    if revision.model_name:
        tags |= {f"{PREFIX}model_name": revision.model_name, f"{PREFIX}model_version": revision.model_version}
    name = f"monitors of revision {revision.number}"
    return str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)


def _release(client: MlflowClient, experiment: str, order: MonitorOrder, revision: MonitoredRevision) -> str:
    """The run of the release that made a revision, empty while there is none."""
    wanted = {f"{PREFIX}revision": str(revision.number), f"{PREFIX}outcome": "done"}
    words = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
    began = _milliseconds(order.created_at) - 1000
    for run in client.search_runs([experiment], words, order_by=["attributes.start_time ASC"]):
        made = run.data.tags.get(f"{PREFIX}action") in ("create", "update", "add")
        if made and run.info.start_time >= began - _RELEASE_SECONDS * 1000:
            return str(run.info.run_id)
    return ""


def _window_run(
    client: MlflowClient,
    experiment: str,
    parent: str,
    order: MonitorOrder,
    revision: MonitoredRevision,
    result: WindowResult,
) -> str:
    """The run of a result: the one that a killed job left, or a new one."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    key = f"{_key(order, revision)}/{result.kind}/{result.start}/{result.number}"
    found = client.search_runs([experiment], f"tags.`{WINDOW_TAG}` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {
        WINDOW_TAG: key,
        MLFLOW_PARENT_RUN_ID: parent,
        f"{PREFIX}deployment": order.deployment,
        f"{PREFIX}revision": str(result.revision),
        f"{PREFIX}monitor": result.kind,
        f"{PREFIX}state": result.state,
        "mlflow.note.content": "\n\n".join((result.summary, *result.reasons[:10], *result.notes)),
    }
    run = client.create_run(
        experiment,
        start_time=_milliseconds(result.start),
        tags=tags,
        run_name=f"{result.kind} {result.start[:19]}" + (f" #{result.number}" if result.number > 1 else ""),
    )
    return str(run.info.run_id)


def _key(order: MonitorOrder, revision: MonitoredRevision) -> str:
    return f"{order.deployment}/{order.created_at}/{revision.number}"


# --- what a run holds --------------------------------------------------------------------------------------


class _Steps:
    """Numbers of windows, the steps of the series: by time since the revision was made, or one by one."""

    def __init__(self, revision: MonitoredRevision, results: ResultStore) -> None:
        self._revision, self._results = revision, results
        self._orders: dict[MonitorKind, dict[datetime, int]] = {}

    def step(self, result: WindowResult) -> int:
        """The window's number."""
        window = self._revision.windows.get(result.kind, "1h")
        start = window_of(result).start
        if row_count(window):
            if result.kind not in self._orders:
                starts = sorted(self._results.starts(result.revision, result.kind))
                self._orders[result.kind] = {each: number for number, each in enumerate(starts)}
            return self._orders[result.kind].get(start, 0)
        seconds = duration_seconds(window)
        first = (datetime.fromisoformat(self._revision.since) - EPOCH).total_seconds() // seconds
        return int((start - EPOCH).total_seconds() // seconds - first)


def _series(result: WindowResult, step: int) -> list[Metric]:
    """The numbers of a result; logging the same again changes nothing, because its time is the window's."""
    from mlflow.entities import Metric

    at = _milliseconds(result.end) + result.number - 1
    named: dict[str, float] = {
        f"{result.kind}.rows": float(result.rows),
        f"{result.kind}.state": float({"ok": 0, "warning": 1, "alert": 2}.get(result.state, -1)),
    }
    named |= result.values
    for column, values in result.columns.items():
        named |= {f"{result.kind}.{name}/{column_key(column)}": value for name, value in values.items()}
    return [Metric(_metric_key(name), value, at, step) for name, value in named.items()]


def column_key(column: str) -> str:
    """A column's name as a part of a metric's name, which may not have every character."""
    name = re.sub(r"[^\w\-. :]", "_", column)[:150]
    return name if name.strip(". ") else "_"


def _metric_key(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _datasets(order: MonitorOrder, revision: MonitoredRevision, result: WindowResult) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {
        "deployment": order.deployment,
        "target": order.target,
        "revision": result.revision,
        "start": result.start,
        "end": result.end,
    }
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    window = Dataset(
        name=f"{order.deployment}-captured",
        digest=digest,
        source_type="mlflow_deploy_capture",
        source=json.dumps(source),
        profile=json.dumps({"num_rows": result.rows, "num_labels": result.labels}),
    )
    found = [DatasetInput(window, [InputTag("mlflow.data.context", "monitoring")])]
    if revision.bundle:
        reference = Dataset(
            name=f"{order.deployment}-reference",
            digest=revision.bundle.removeprefix("sha256-")[:8],
            source_type="mlflow_deploy_bundle",
            source=json.dumps({"bundle": revision.bundle, "file": "profile.json"}),
        )
        found.append(DatasetInput(reference, [InputTag("mlflow.data.context", "reference")]))
    return found


def _log_files(
    client: MlflowClient,
    run_id: str,
    data: Path,
    revision: MonitoredRevision,
    results: ResultStore,
    result: WindowResult,
    evidently: Evidently | None,
) -> None:
    client.log_artifact(run_id, str(results.path(result)), "monitor")
    page = results.path(result).with_name(result.report) if result.report else None
    if page is not None and page.exists():
        client.log_artifact(run_id, str(page), "monitor")
    if evidently is None or not wants_evidently(revision, result):
        return
    try:
        text = evidently(data, revision, result)
    except Exception as error:  # noqa: BLE001 - the report is an extra; why it is lacking is on the run
        client.set_tag(run_id, f"{PREFIX}evidently", f"failed: {' '.join(str(error).split())[:400]}")
        return
    if text:
        with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
            path = Path(work) / "evidently.html"
            path.write_text(text, encoding="utf-8")
            client.log_artifact(run_id, str(path), "monitor")
        client.set_tag(run_id, f"{PREFIX}evidently", "logged")


def wants_evidently(revision: MonitoredRevision, result: WindowResult) -> bool:
    """Whether Evidently's report of a window is wanted."""
    wanted = spec_of(revision).evidently
    if result.kind != "drift" or wanted == "never" or result.state in ("error", "no_reference"):
        return False
    return wanted == "always" or result.state in ("warning", "alert")


def _tag_version(client: MlflowClient, revision: MonitoredRevision, result: WindowResult) -> None:
    """Tell the verdict at the model version; one that was deleted is no failure of the monitor."""
    from mlflow.exceptions import MlflowException

    if not revision.model_name or not revision.model_version:
        return
    tags: Mapping[str, Any] = {f"monitor.{result.kind}.window": f"{result.start}/{result.end}"}
    if result.state in VERDICTS:
        tags = {f"monitor.{result.kind}": result.state, **tags}
    try:
        for key, value in tags.items():
            client.set_model_version_tag(revision.model_name, revision.model_version, key, value)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        _LOG.warning("model version %s %s is gone", revision.model_name, revision.model_version)


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
