"""Counts how often each revision was right, from captured answers and the labels that have come for them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.monitoring.captured import REQUEST_ID, ROW, STATUS, TIME, CaptureStore
from mlflow_deploy.monitoring.window_rows import ANSWER


def count_outcomes(
    captures: CaptureStore,
    revisions: Iterable[int],
    start: datetime,
    end: datetime,
    *,
    key: str = REQUEST_ID,
    tolerance: float = 0.0,
) -> dict[int, tuple[int, int]]:
    """How many labelled answers of each revision were right, and how many wrong.

    A revision without a labelled answer is left out, and so is one whose model has several outputs, because
    nothing says which of them a label is about.

    Args:
        start: answers from then on count, UTC.
        end: and those before then.
        key: what labels name: the request id, or a column of the features.
        tolerance: how far a number may lie from its label and be right, relative to the label.

    Raises:
        DataError: the rows cannot be read, or lack the key column.
    """
    labels = captures.labels()
    found = {}
    for revision in revisions if labels.num_rows else ():
        names = captures.schema(revision, start, end).names
        if ANSWER not in names:
            continue
        wanted = {REQUEST_ID, ROW, TIME, STATUS, ANSWER, key}
        rows = captures.read(revision, start, end, [name for name in names if name in wanted])
        joined = captures.join(rows, key=key, labels=labels).rows
        answered = joined.filter(pc.is_valid(joined.column(ANSWER)))
        if answered.num_rows:
            right = _right(answered.column(ANSWER), answered.column("label"), tolerance)
            found[revision] = (right, answered.num_rows - right)
    return found


def _right(answers: pa.ChunkedArray, labels: pa.ChunkedArray, tolerance: float) -> int:
    """Rows whose answer is the label; numbers as numbers, whatever their types, everything else as text."""
    if all(_is_number(column.type) for column in (answers, labels)):
        given, true = (
            np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=float) for column in (answers, labels)
        )
        return int(np.count_nonzero(np.abs(given - true) <= tolerance * np.abs(true)))
    texts = (pc.cast(column, pa.string()) for column in (answers, labels))
    return int(pc.sum(pc.cast(pc.equal(*texts), pa.int64())).as_py() or 0)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))
