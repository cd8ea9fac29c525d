"""Real flights replayed through a deployment: its monitors judge, labels come later, alerts arrive."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.demo import traffic
from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.labels import add_labels
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.local_monitor import DATA

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.targets.base import Target

ROWS = 6_000
"""Flights of each period that are replayed: one window."""
THRESHOLDS = {
    "monitor.drift.min_distance": 0.4,
    "monitor.drift.min_share": 0.2,
    "monitor.drift.alert_share": 0.1,
}
"""What counts as drift: the weather of a fortnight is never that of another, and each month moves a little."""
_WAIT_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class Period:
    """What the monitors said of the flights of one period.

    Attributes:
        name: of the period.
        drift: verdict of the drift monitor.
        drifted: columns that drifted, the answers among them.
        columns: columns that were compared.
        moved: column -> Jensen-Shannon distance, of those that drifted, the farthest first.
        reasons: a sentence for each change that was found, in the same order.
        estimated: accuracy estimated before any label came.
        measured: accuracy on the labels that came later.
        expected: accuracy on the reference rows.
        majority: accuracy of always predicting the commoner class.
        performance: verdict of the performance monitor on the labels.
    """

    name: str
    drift: str
    drifted: int
    columns: int
    moved: dict[str, float]
    reasons: tuple[str, ...]
    estimated: float
    measured: float
    expected: float
    majority: float
    performance: str


def config(reference: Path, inbox: Path) -> dict[str, Any]:
    """Settings of the deployment.

    Args:
        reference: Parquet file of the rows that later ones are compared with.
        inbox: file that gets a line for each message of the monitors.
    """
    return {
        "monitor.window": f"{ROWS}rows",
        "monitor.grace_seconds": 0,
        "monitor.reference": str(reference),
        **THRESHOLDS,
        "monitor.alert.command": shlex.join(["sh", "-c", '(cat; echo) >> "$0"', str(inbox)]),
        "monitor.alert.group_seconds": 0,
        # It takes longer than all that the demo does; our own page of each window is made anyway.
        "monitor.evidently": "never",
        "capture.flush_seconds": 0.1,
        # What an earlier `--full` left is a canary, which would wait for requests.
        "strategy": "recreate",
    }


class Replay:
    """Sends flights to a deployment and waits for what its attached monitors find."""

    def __init__(self, target: Target, name: str) -> None:
        self._target, self._record = target, target.require(name)
        self._store = ResultStore(state_home() / "local" / "deployments" / name / DATA)

    @property
    def revision(self) -> int:
        """Number of the revision that serves."""
        return self._record.stable.number

    def send(self, features: pd.DataFrame, progress: Callable[[str], None]) -> traffic.Sent:
        """Send the flights of a period, which fill one window.

        Raises:
            PredictionError: a request was not answered.
        """
        return traffic.send(self._target.url(self._record), features, progress)

    def verdicts(self, kind: MonitorKind, windows: int, *, labelled: bool = False) -> list[WindowResult]:
        """The results of the first windows of the revision, as soon as its monitor has them.

        Args:
            labelled: those that were made again when the labels had come.

        Raises:
            DataError: the monitor failed, or does not come to an end.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = self._store.results(self.revision, kind)[:windows]
            if len(found) == windows and all(each.labels or not labelled for each in found):
                break
            if time.monotonic() > deadline:
                raise DataError(
                    f"The {kind} monitor did not judge {windows} windows within {_WAIT_SECONDS:g} s",
                    hint=f"See `mlflow-deploy monitor status {self._record.name}`",
                )
            time.sleep(0.1)
        if failed := [each.summary for each in found if each.state == "error"]:
            raise DataError(f"The {kind} monitor failed", why=failed[0])
        return found

    def add_labels(self, sent: Iterable[traffic.Sent], labels: Iterable[pd.Series[Any]]) -> None:
        """Give the monitors what really happened to all flights that were sent."""
        import pandas as pd

        keys = [key for each in sent for key in each.keys]
        frame = pd.DataFrame(keys, columns=["request_id", "row"])
        frame["late"] = pd.concat(list(labels)).to_numpy()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "labels.parquet"
            frame.to_parquet(file, index=False)
            columns = {"key": "request_id", "row": "row", "label": "late", "time": ""}
            add_labels(self._target, self._record, file, columns)

    def alerts(self, inbox: Path, *, kinds: set[str]) -> tuple[str, ...]:
        """The messages about this revision, when one on each of the kinds of monitor has arrived.

        Raises:
            DataError: one did not arrive.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = messages(inbox, self.revision)
            told = {notice["monitor"] for message in found for notice in message["notices"]}
            if kinds <= told:
                return tuple(message["text"] for message in found)
            if time.monotonic() > deadline:
                raise DataError(
                    f"No alert of the monitors {', '.join(sorted(kinds - told))} arrived",
                    why=f"{inbox} has none after {_WAIT_SECONDS:g} s",
                )
            time.sleep(0.2)


def period(
    name: str, drift: WindowResult, estimate: WindowResult, measured: WindowResult, labels: pd.Series[Any]
) -> Period:
    """The results of one window: of the drift monitor, and of the other before and after the labels came."""
    moved = {
        column: values.get("statistic", 1.0)
        for column, values in drift.columns.items()
        if values.get("drifted")
    }
    return Period(
        name=name,
        drift=drift.state,
        drifted=int(drift.values["drift.drifted"]),
        columns=int(drift.values["drift.columns"]),
        moved=dict(sorted(moved.items(), key=lambda item: -item[1])),
        reasons=drift.reasons,
        estimated=estimate.values["estimate.accuracy"],
        measured=measured.values["performance.accuracy"],
        expected=estimate.values["reference.accuracy"],
        majority=float(max(labels.mean(), 1 - labels.mean())),
        performance=measured.state,
    )


def messages(inbox: Path, revision: int) -> list[dict[str, Any]]:
    """Messages about a revision in order, each once; one that is just being written is left for later."""
    if not inbox.exists():
        return []
    lines = inbox.read_bytes().splitlines(keepends=True)
    messages = [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]
    # Messages are delivered at least once, always with the same id.
    found = {message["id"]: message for message in messages}
    return [
        message
        for message in found.values()
        if any(notice["revision"] == revision for notice in message["notices"])
    ]
