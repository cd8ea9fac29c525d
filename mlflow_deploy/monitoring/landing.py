"""Bring results into MLflow: a run for each window below the run of its revision, series, pages, tags.

Results wait in their files until they were logged; a run that a kill left half made is found by its tag and
finished.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy.files import locked, write_atomic
from mlflow_deploy.monitoring.claims import UNLOGGED
from mlflow_deploy.monitoring.hand_over import LAND_LOCK, handed_out
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.run_content import (
    PREFIX,
    Evidently,
    Steps,
    datasets_of,
    log_files,
    log_metrics,
    milliseconds,
    series_of,
    tag_version,
)
from mlflow_deploy.monitoring.store import KINDS, ResultStore
from mlflow_deploy.reachable import no_answer
from mlflow_deploy.targets.base_monitor import HOST_OF_CONTAINER, MonitoredRevision, MonitorOrder

if TYPE_CHECKING:
    from mlflow import MlflowClient

WINDOW_TAG = f"{PREFIX}window"
"""Key of a window's result; one run has it."""
MONITORS_TAG = f"{PREFIX}monitors"
"""Key of a revision's monitors; the parent of its windows' runs has it."""

_HEALTH_SECONDS = 2.0
_RELEASE_SECONDS = 3600.0
"""How long before its deployment was made a release may have begun."""


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
    with locked(results.folder / LAND_LOCK, wait=True):
        if handed_out(data):
            return LandReport(problem="a command on another machine logs them now")
        report = _land(data, order, results, evidently)
        why = results.folder / UNLOGGED
        if report.problem:
            write_atomic(why, report.problem.encode(), mode=0o640)
        else:
            why.unlink(missing_ok=True)
        return report


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
            if "Invalid Host header" in problem:
                problem += f". Start its server with --allowed-hosts, with {HOST_OF_CONTAINER} among them"
    total = sum(len(each) for each in waiting.values())
    return LandReport(logged=logged, left=total - logged, problem=problem)


def reach(revision: MonitoredRevision) -> str:
    """Set the MLflow server of a revision; returns why it cannot be asked now, empty when it can."""
    import mlflow

    uri = revision.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return "no MLflow tracking server is set; set monitor.tracking_uri or MLFLOW_TRACKING_URI"
    if reason := no_answer(uri, seconds=_HEALTH_SECONDS):
        problem = f"the MLflow server at {uri} does not answer: {reason}"
        if HOST_OF_CONTAINER in uri:
            problem += (
                ". Containers reach it only when it listens on more than the loopback of its machine: "
                f"mlflow server --host 0.0.0.0 --allowed-hosts localhost:*,{HOST_OF_CONTAINER}:*"
            )
        return problem
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
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
    steps = Steps(revision, results)
    for result in sorted(waiting, key=lambda each: (each.start, each.kind, each.number)):
        step = steps.step(result)
        log_metrics(client, parent, series_of(result, step))
        run_id = parent
        if result.rows:
            run_id = _window_run(client, experiment, parent, order, revision, result)
            log_metrics(client, run_id, series_of(result, step))
            client.log_inputs(run_id, datasets_of(order, revision, result))
            log_files(client, run_id, data, revision, results, result, evidently)
            client.set_terminated(run_id, end_time=milliseconds(result.finished_at))
        yield results.mark_logged(result, run_id)
    for kind in KINDS:
        latest = results.latest(revision.number, kind)
        if latest is not None and any(each.kind == kind for each in waiting):
            tag_version(client, revision, latest)
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
    began = milliseconds(order.created_at) - 1000
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
        start_time=milliseconds(result.start),
        tags=tags,
        run_name=f"{result.kind} {result.start[:19]}" + (f" #{result.number}" if result.number > 1 else ""),
    )
    return str(run.info.run_id)


def _key(order: MonitorOrder, revision: MonitoredRevision) -> str:
    return f"{order.deployment}/{order.created_at}/{revision.number}"
