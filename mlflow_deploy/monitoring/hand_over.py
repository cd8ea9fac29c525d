"""Hand results that the job could not log over to a command that can reach MLflow, and take the runs back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.files import write_atomic
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.base_monitor import MonitorOrder, order_path

MAX_RESULTS = 500
"""Results that are handed over at once; the oldest first."""


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What is handed over.

    Attributes:
        order: of the deployment.
        results: those that were not logged.
        pages: file name within the folder of the monitors -> HTML page.
    """

    order: MonitorOrder | None
    results: list[WindowResult]
    pages: dict[str, str]


def waiting(data: Path) -> Handed:
    """The results in a data folder that were not logged, with their pages."""
    store = ResultStore(data)
    results = [each for each in store.results(superseded=True) if not each.run_id][:MAX_RESULTS]
    pages = {}
    for result in results:
        page = store.path(result).with_name(result.report) if result.report else None
        if page is not None and page.exists():
            pages[str(page.relative_to(store.folder))] = page.read_text(encoding="utf-8")
    return Handed(order=read_order(data), results=results, pages=pages)


def lay_down(data: Path, handed: Any, servers: Mapping[int, tuple[str, str]]) -> None:
    """Lay what was handed over into an empty data folder.

    Args:
        handed: `Handed` as plain values.
        servers: revision -> tracking and registry server as they are reached from here.
    """
    given = msgspec.convert(handed, Handed)
    if given.order is None:
        return
    revisions = tuple(
        msgspec.structs.replace(
            each, tracking_uri=servers[each.number][0], registry_uri=servers[each.number][1]
        )
        for each in given.order.revisions
        if each.number in servers
    )
    order_path(data).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        order_path(data), msgspec.json.encode(msgspec.structs.replace(given.order, revisions=revisions))
    )
    store = ResultStore(data)
    for result in given.results:
        page = store.path(result).with_name(result.report) if result.report else None
        name = str(page.relative_to(store.folder)) if page is not None else ""
        store.commit(result, given.pages.get(name, ""))


def marks_of(data: Path) -> list[list[Any]]:
    """What was logged, as `mark` takes it."""
    return [
        [each.revision, each.kind, each.start, each.number, each.run_id]
        for each in ResultStore(data).results(superseded=True)
        if each.run_id
    ]


def mark(data: Path, marks: Sequence[Sequence[Any]]) -> int:
    """Note the runs of results that were logged elsewhere; returns how many."""
    store, count = ResultStore(data), 0
    for revision, kind, start, number, run_id in marks:
        result = store.get(revision, kind, datetime.fromisoformat(start), number)
        if result is not None and not result.run_id:
            store.mark_logged(result, run_id)
            count += 1
    return count
