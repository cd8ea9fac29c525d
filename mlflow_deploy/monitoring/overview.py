"""How the monitors of a deployment stand, for status commands; and the pages of their windows."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow_deploy.errors import DataError, DeployError
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.store import KINDS, ResultStore
from mlflow_deploy.targets.base_monitor import MonitoredRevision, profile_path


def overview(data: Path, *, now: datetime) -> list[dict[str, Any]]:
    """One entry per revision and monitor, as plain values.

    Args:
        data: the deployment's data folder.
    """
    order = read_order(data)
    if order is None:
        return []
    captures, results = CaptureStore(data), ResultStore(data)
    return [
        _entry(data, captures, results, revision, kind, now)
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


def _same(result: WindowResult, start: str) -> bool:
    try:
        return datetime.fromisoformat(result.start) == datetime.fromisoformat(start)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{start!r} is no time with a time zone, such as 2026-01-01T00:00:00+00:00"
        ) from error
