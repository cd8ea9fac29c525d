"""The copy of the release records in MLflow: an experiment for each deployment, a run for each record."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.lifecycle.records.record import ReleaseRecord
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.reachable import no_answer

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "release.json"
"""Artifact with the record, the same bytes as the file on the target."""

TAG = "mlflow_deploy."
HASH_TAG = f"{TAG}hash"
NUMBER_TAG = f"{TAG}record"

_HEALTH_SECONDS = 2.0
_TAG_CHARACTERS = 1000


def experiment_name(target: str, name: str) -> str:
    """Name of the experiment that has the releases of a deployment."""
    return f"mlflow-deploy/{target}/{name}"


def server_problem() -> str:
    """Why MLflow cannot be asked now, without waiting for long; the empty string when it can."""
    import mlflow

    if not mlflow.tracking.is_tracking_uri_set():
        return "no MLflow tracking server is set; set MLFLOW_TRACKING_URI"
    uri = mlflow.get_tracking_uri()
    reason = no_answer(uri, seconds=_HEALTH_SECONDS)
    return f"the MLflow server at {uri} does not answer: {reason}" if reason else ""


def open_store(target: str, name: str) -> Store:
    """The copies of a deployment's records in the tracking server that is set."""
    import mlflow

    return Store(mlflow.MlflowClient(), experiment_name(target, name))


class Store:
    """The runs of one deployment's experiment."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self._client, self._experiment = client, experiment

    def log(self, record: ReleaseRecord, document: bytes) -> str:
        """Log a record and return its run; one that is there, whole or half, is finished and not doubled."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        )
        found = self._client.search_runs([experiment_id], f"tags.`{HASH_TAG}` = '{record.hash}'")
        if found and found[0].info.status != "RUNNING":
            return str(found[0].info.run_id)
        run_id = found[0].info.run_id if found else self._begin(experiment_id, record)
        self._client.log_batch(run_id, metrics=_metrics(record), params=_params(record))
        with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
            (Path(work) / FILE).write_bytes(document)
            self._client.log_artifact(run_id, str(Path(work) / FILE))
        status = "FINISHED" if record.outcome == "done" else "FAILED"
        with mlflow_is_quiet():
            self._client.set_terminated(run_id, status, end_time=_milliseconds(record.at))
        return str(run_id)

    def runs(self) -> dict[int, list[tuple[str, bytes | None]]]:
        """Number of a record -> id of each run of it, with the record that it holds; None when it has none."""
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(self._experiment)
        found: dict[int, list[tuple[str, bytes | None]]] = {}
        token: str | None = None
        while experiment is not None:
            page = self._client.search_runs([experiment.experiment_id], page_token=token)
            for run in page:
                number = run.data.tags.get(NUMBER_TAG, "")
                if not number.isdecimal():
                    continue
                with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
                    try:
                        path = self._client.download_artifacts(run.info.run_id, FILE, work)
                        document: bytes | None = Path(path).read_bytes()
                    except (OSError, MlflowException):
                        document = None
                found.setdefault(int(number), []).append((run.info.run_id, document))
            token = page.token
            if not token:
                break
        return found

    def _begin(self, experiment_id: str, record: ReleaseRecord) -> str:
        about = f" to revision {record.revision}" if record.revision else ""
        run = self._client.create_run(
            experiment_id,
            start_time=_milliseconds(record.began_at),
            tags=_tags(record),
            run_name=f"{record.number} {record.action}{about}",
        )
        return str(run.info.run_id)


def _tags(record: ReleaseRecord) -> dict[str, str]:
    own = {
        "record": str(record.number),
        "hash": record.hash,
        "previous": record.previous,
        "deployment": record.deployment,
        "target": record.target,
        "action": record.action,
        "outcome": record.outcome,
        "reason": record.reason[:_TAG_CHARACTERS],
        "revision": str(record.revision or ""),
        "model": record.model.uri,
        "model_name": record.model.name,
        "model_version": record.model.version,
        "requester": record.requester,
        "approvers": ", ".join(record.approvers)[:_TAG_CHARACTERS],
    }
    tags = {f"{TAG}{key}": value for key, value in own.items() if value}
    return {**tags, "mlflow.user": record.requester, "mlflow.note.content": _note(record)}


def _note(record: ReleaseRecord) -> str:
    """The page of the run, in Markdown."""
    about = f"revision {record.revision}" if record.revision else "several revisions"
    lines = [
        f"**{record.action}** of deployment `{record.deployment}` on `{record.target}`: {record.outcome}"
    ]
    lines += [f"{about}, model `{record.model.uri or 'none'}`, bundle `{record.bundle or 'none'}`"]
    lines += [f"Requested by {record.requester}, approved by {', '.join(record.approvers) or 'nobody'}."]
    lines += [f"Reason: {record.reason}"] if record.reason else []
    for point in record.timeline:
        shares = ", ".join(f"revision {number}: {share} %" for number, share in point.weights.items())
        lines.append(
            f"- {point.at} {shares or 'nothing served'}" + (f" ({point.reason})" if point.reason else "")
        )
    return "\n\n".join(lines)


def _params(record: ReleaseRecord) -> list[Any]:
    from mlflow.entities import Param

    values = {
        "model": record.model.uri,
        "model_digest": record.model.digest,
        "bundle": record.bundle,
        "image": record.image,
        "format": record.format,
        "strategy": record.rollout.strategy if record.rollout else "",
    }
    return [Param(key, value) for key, value in values.items() if value]


def _metrics(record: ReleaseRecord) -> list[Any]:
    """The timeline as a metric for each revision, which MLflow draws as a chart."""
    from mlflow.entities import Metric

    numbers = sorted({number for point in record.timeline for number in point.weights})
    return [
        Metric(
            f"share of revision {number}", float(point.weights.get(number, 0)), _milliseconds(point.at), step
        )
        for step, point in enumerate(record.timeline)
        for number in numbers
    ]


def _milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)
