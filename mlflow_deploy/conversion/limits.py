"""Servables that take finite numbers only: a last resort where runtimes disagree on what NaN becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from mlflow_deploy.bundle import Feed, Servable
from mlflow_deploy.conversion.base import Candidate
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.parity import Reference
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows

NOTE = (
    "the server refuses missing values and Infinity, which the native model answers: its layers treat them "
    "differently in this form"
)


def with_finite(label: str, build: Callable[[Path], Servable]) -> Iterator[Candidate]:
    """A candidate, and for the case that it could be built and differs, the same for finite numbers only."""
    made: list[Servable] = []

    def first(folder: Path) -> Servable:
        made.append(build(folder))
        return made[0]

    def second(folder: Path) -> Servable:
        servable = build(folder)
        return structs.replace(servable, feeds=tuple(map(_finite, servable.feeds)))

    yield Candidate(label=label, build=first)
    if made and any(_is_float(feed) for feed in made[0].feeds):
        yield Candidate(label=f"{label}, finite numbers only", build=second)


def _is_float(feed: Feed) -> bool:
    return feed.dtype != "str" and np.dtype(feed.dtype).kind == "f"


def _finite(feed: Feed) -> Feed:
    return structs.replace(feed, accepts="finite") if _is_float(feed) else feed


def within(reference: Reference, feeds: Sequence[Feed]) -> Reference:
    """The rows that the server lets through to a servable; the others count as refused."""
    limited = [feed for feed in feeds if feed.accepts == "finite" and _is_float(feed)]
    rows = reference.dataset.rows
    if not limited or not count(rows):
        return reference
    good = np.logical_and.reduce([_all_finite(feed, rows) for feed in limited])
    if good.all():
        return reference
    keep = np.flatnonzero(good).tolist()
    truth = None if reference.dataset.truth is None else reference.dataset.truth[keep]
    dataset = replace(reference.dataset, rows=take(rows, keep), truth=truth)
    refused = reference.refused + count(rows) - len(keep)
    return replace(reference, dataset=dataset, answers=reference.answers.take(good), refused=refused)


def _all_finite(feed: Feed, rows: Rows) -> Array:
    """For each row whether all numbers of a feed are finite."""
    if isinstance(rows, Mapping):
        values = rows[feed.tensor or ""]
    else:
        values = rows.reindex(columns=list(feed.columns)).to_numpy(dtype=np.float64)
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
