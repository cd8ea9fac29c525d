"""Count a window's rows into the bins of a reference column, batch by batch in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.monitoring.profile import (
    ColumnProfile,
    bin_of,
    count_numbers,
    numbers,
    part_of_sample,
    text_marks,
    texts,
)
from mlflow_deploy.monitoring.tables import Table, kind_of


@dataclass(frozen=True, kw_only=True)
class WindowColumn:
    """What a window holds in one column.

    Attributes:
        dtype: Arrow types of the values, `null` when there is none.
        comparable: the values are of the reference's kind; otherwise nothing else was counted.
        missing: rows without a value.
        counts: rows per bin of the reference, as in `ColumnProfile.counts`.
        infinite: rows with plus or minus infinity.
        mean: of the finite values of a numeric column; None without any.
        unseen: rows with a value that a reference with a tail never had.
        sample: bins of the picked rows, when rows were picked.
    """

    dtype: str
    comparable: bool
    missing: int
    counts: npt.NDArray[np.int64]
    infinite: int = 0
    mean: float | None = None
    unseen: int = 0
    sample: npt.NDArray[np.int64] | None = None


def count_column(
    table: Table, reference: ColumnProfile, picked: npt.NDArray[np.int64] | None = None
) -> WindowColumn:
    """Count one column of a window into the bins of the reference.

    Args:
        table: the window.
        reference: the column to count.
        picked: rising numbers of the rows whose bins are kept one by one.
    """
    tally = _Tally(reference)
    types: set[str] = set()
    comparable = True
    at, sample = 0, []
    for array in table.column(reference.name):
        kind = kind_of(array.type)
        if picked is not None and kind in ("empty", reference.kind):
            sample.append(bin_of(reference, part_of_sample(array, at, picked)))
        at += len(array)
        if kind == "empty":
            tally.missing += len(array)
            continue
        types.add(str(array.type))
        if reference.kind == "empty":
            # No value was ever seen, so there is no bin; only that there are values now can be told.
            tally.missing += int(array.null_count)
        elif kind != reference.kind or kind == "unsupported":
            comparable = False
        elif kind == "numeric":
            tally.add_numbers(numbers(array))
        else:
            tally.add_texts(texts(array))
    return WindowColumn(
        dtype=" or ".join(sorted(types)) or "null",
        comparable=comparable,
        missing=tally.missing,
        counts=tally.counts,
        infinite=tally.infinite,
        mean=tally.mean if tally.finite else None,
        unseen=tally.unseen,
        sample=np.concatenate(sample) if sample else None,
    )


class _Tally:
    """The running counts of one column."""

    def __init__(self, reference: ColumnProfile) -> None:
        self._edges = np.asarray(reference.edges, dtype=np.float64)
        self._categories = pa.array(reference.categories, pa.large_string())
        self.counts = np.zeros(len(reference.counts), dtype=np.int64)
        self._seen = None if reference.tail is None else reference.tail.seen()
        self.missing = self.infinite = self.finite = self.unseen = 0
        self.mean = 0.0

    def add_numbers(self, values: npt.NDArray[np.float64]) -> None:
        self.counts += count_numbers(values, self._edges)
        finite = values[np.isfinite(values)]
        missing = int(np.isnan(values).sum())
        self.missing += missing
        self.infinite += values.size - missing - finite.size
        self.finite += finite.size
        if finite.size:
            # A running mean instead of a sum, because a sum of very large values overflows.
            self.mean += math.fsum(((finite / self.finite).sum(), -self.mean * finite.size / self.finite))

    def add_texts(self, values: pa.Array) -> None:
        self.missing += int(values.null_count)
        codes = pc.index_in(values.drop_null(), value_set=self._categories)
        # A value that is no category of the reference gets the last bin.
        known = np.asarray(pc.fill_null(codes, len(self._categories)).to_numpy(zero_copy_only=False))
        self.counts += np.bincount(known, minlength=self.counts.size).astype(np.int64)
        if self._seen is not None:
            entries = values.drop_null().value_counts()
            rows = np.asarray(entries.field("counts").to_numpy(zero_copy_only=False))
            self.unseen += int(rows[~self._seen[text_marks(entries.field("values").to_pylist())]].sum())
