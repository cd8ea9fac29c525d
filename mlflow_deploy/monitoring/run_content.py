"""What the MLflow run of a window holds: numbers as series, datasets, pages; and the model version's tags."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.config_monitor import duration_seconds
from mlflow_deploy.monitoring.jobs import spec_of, window_of
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.monitoring.windows import EPOCH, row_count
from mlflow_deploy.targets.base_monitor import MonitoredRevision, MonitorOrder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

PREFIX = "mlflow_deploy."
VERDICTS = ("ok", "warning", "alert")

Evidently = Callable[[Path, MonitoredRevision, WindowResult], str]
"""Makes Evidently's report of a window; returns it, empty when it is not wanted."""

_BATCH = 900
_LOG = logging.getLogger("mlflow_deploy.monitor")


class Steps:
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


def series_of(result: WindowResult, step: int) -> list[Metric]:
    """The numbers of a result; logging the same again changes nothing, because its time is the window's."""
    from mlflow.entities import Metric

    at = milliseconds(result.end) + result.number - 1
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


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def datasets_of(order: MonitorOrder, revision: MonitoredRevision, result: WindowResult) -> list[DatasetInput]:
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


def log_files(
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


def tag_version(client: MlflowClient, revision: MonitoredRevision, result: WindowResult) -> None:
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


def milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
