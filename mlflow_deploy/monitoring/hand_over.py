"""Hand results that the job could not log over to a command that can reach MLflow, and take the runs back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.files import locked, write_atomic
from mlflow_deploy.monitoring.claims import UNLOGGED
from mlflow_deploy.monitoring.orders import read_order
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.targets.base_monitor import FOLDER, MonitorOrder, order_path

MAX_RESULTS = 500
"""Results that are handed over at once; the oldest first."""
LAND_LOCK = "land.lock"
"""Held in the folder of the monitors by whoever logs results."""

_HANDED = "handed"
_HANDED_SECONDS = 120.0


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
    """The results in a data folder that were not logged, with their pages.

    For two minutes, or until they are marked, nobody else gets them and the job itself does not log them:
    neither would find the runs that the other is about to make.
    """
    store = ResultStore(data)
    store.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(store.folder / LAND_LOCK, wait=True):
        results = [] if handed_out(data) else store.results(superseded=True)
        results = [each for each in results if not each.run_id][:MAX_RESULTS]
        if results:
            write_atomic(store.folder / _HANDED, str(time.time()).encode())
    pages = {}
    for result in results:
        page = store.path(result).with_name(result.report) if result.report else None
        if page is not None and page.exists():
            pages[str(page.relative_to(store.folder))] = page.read_text(encoding="utf-8")
    return Handed(order=read_order(data), results=results, pages=pages)


def handed_out(data: Path) -> bool:
    """Whether a command elsewhere logs the results now."""
    path = data / FOLDER / _HANDED
    return path.exists() and 0 <= time.time() - float(path.read_text()) < _HANDED_SECONDS


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
    """Note the runs of results that were logged elsewhere, and end what `waiting` began; returns how many."""
    store, count = ResultStore(data), 0
    for revision, kind, start, number, run_id in marks:
        result = store.get(revision, kind, datetime.fromisoformat(start), number)
        if result is not None and not result.run_id:
            store.mark_logged(result, run_id)
            count += 1
    if all(each.run_id for each in store.results(superseded=True)):
        (store.folder / UNLOGGED).unlink(missing_ok=True)
    (store.folder / _HANDED).unlink(missing_ok=True)
    return count
