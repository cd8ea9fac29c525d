"""How the monitors of a deployment stand, for status commands; and the pages of their windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow_deploy.errors import DataError, DeployError
from mlflow_deploy.monitoring.alert_state import ActionEntry, iso, read_state
from mlflow_deploy.monitoring.captured import CaptureStore, deployment_captures
from mlflow_deploy.monitoring.claims import unlogged
from mlflow_deploy.monitoring.orders import acts_itself, read_order
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.store import KINDS, ResultStore
from mlflow_deploy.targets.base_monitor import MonitoredRevision, MonitorOrder, profile_path


def overview(data: Path, *, now: datetime) -> list[dict[str, Any]]:
    """One entry per revision and monitor, as plain values.

    Args:
        data: the deployment's data folder.
    """
    order = read_order(data)
    if order is None:
        return []
    captures, results = deployment_captures(data), ResultStore(data)
    actions = read_state(data).actions
    return [
        {
            **(entry := _entry(data, captures, results, revision, kind, now)),
            "notes": [*entry["notes"], *_open_ends(order, revision.number, kind, actions, unlogged(data))],
        }
        for revision in order.revisions
        for kind in KINDS
        if kind in revision.windows
    ]


def page_of(data: Path, revision: int, kind: MonitorKind, start: str) -> dict[str, str]:
    """The HTML page of a window.

    Args:
        revision: 0 for the newest that has results.
        start: of the window; empty for the latest that has a page.

    Raises:
        DataError: there is none.
    """
    results = ResultStore(data)
    numbers = [revision] if revision else results.revisions()[-1:]
    for number in numbers:
        for result in reversed(results.results(number, kind)):
            if result.report and (not start or _same(result, start)):
                path = results.path(result).with_name(result.report)
                return {"name": path.name, "start": result.start, "html": path.read_text(encoding="utf-8")}
    raise DataError(
        "There is no page of such a window",
        why="pages are made of windows that were compared",
        hint="`mlflow-deploy monitor list` shows the windows",
    )


def _entry(
    data: Path,
    captures: CaptureStore,
    results: ResultStore,
    revision: MonitoredRevision,
    kind: MonitorKind,
    now: datetime,
) -> dict[str, Any]:
    starts = results.starts(revision.number, kind)
    latest = results.latest(revision.number, kind)
    notes = []
    span = None
    dropped = 0
    try:
        span = captures.span(revision.number)
        dropped = captures.drops(revision.number).requests
    except (DeployError, OSError) as error:
        notes.append(f"the captured rows cannot be read: {error}")
    if not (revision.settings.get("capture") or {}).get("enabled", True):
        notes.append("nothing is captured: capture.enabled is false")
    if dropped:
        notes.append(f"{dropped} requests could not be captured")
    if latest is not None and datetime.fromisoformat(latest.end) > now + timedelta(seconds=1):
        notes.append("the last window ends in the future: the clock went back")
    frozen = profile_path(data, revision.number).exists()
    return {
        "revision": revision.number,
        "kind": kind,
        "active": revision.active,
        "window": revision.windows[kind],
        "reference": "profile of the version" if frozen else "first captured rows",
        "state": latest.state if latest else "no window yet",
        "summary": latest.summary if latest else "",
        "windows": len(starts),
        "last_start": latest.start if latest else "",
        "last_end": latest.end if latest else "",
        "rows": latest.rows if latest else 0,
        "labels": latest.labels if latest else 0,
        "logged": bool(latest and latest.run_id),
        "captured_until": span[1].isoformat() if span else "",
        "notes": notes,
    }


def _open_ends(
    order: MonitorOrder, revision: int, kind: MonitorKind, actions: Sequence[ActionEntry], unlogged: str
) -> Iterator[str]:
    """What waits for somebody else."""
    for entry in actions:
        if entry.open and not entry.carried_out and (entry.revision, entry.kind) == (revision, kind):
            if entry.action == "notify":
                continue
            told = f"{entry.action} is wanted since {iso(entry.wanted)}" + f": {entry.detail}" * bool(
                entry.detail
            )
            how = f"`mlflow-deploy monitor act {order.deployment}` carries it out"
            yield told if acts_itself(order) else f"{told}; {how}"
    if unlogged:
        yield f"results wait for MLflow: {unlogged}"


def _same(result: WindowResult, start: str) -> bool:
    try:
        return datetime.fromisoformat(result.start) == datetime.fromisoformat(start)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{start!r} is no time with a time zone, such as 2026-01-01T00:00:00+00:00"
        ) from error
