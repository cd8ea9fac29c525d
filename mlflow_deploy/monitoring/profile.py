"""The reference profile: what training or validation rows looked like, small and frozen."""

from __future__ import annotations

import base64
import math
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring import multivariate
from mlflow_deploy.monitoring.quality import ReferenceQuality, fit_quality
from mlflow_deploy.monitoring.tables import Data, Kind, Table, kind_of, open_table, values_table

SCHEMA = 1
BINS = 10
MAX_CATEGORIES = 100
MARKS = 65_536
PREDICTION = "prediction"
LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the finite values of a numeric column; `std` is that of the sample."""

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Which values a text column with more than `MAX_CATEGORIES` of them ever had, as marks of their hashes.

    Attributes:
        marks: a bit per possible hash, compressed, in base64.
        once: rows whose hash no other row has. Their share is the chance that a next row of the same source
            shows something never seen (Good and Turing's estimate).
    """

    marks: str
    once: int

    def seen(self) -> npt.NDArray[np.bool_]:
        """Whether each hash was seen, shape [MARKS]."""
        bits = np.frombuffer(zlib.decompress(base64.b64decode(self.marks)), dtype=np.uint8)
        return np.unpackbits(bits).astype(np.bool_)


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """One column of the reference.

    Attributes:
        kind: numeric (also booleans, as 0 and 1), categorical (text), empty (no value at all), or
            unsupported (times, lists and other types that are not compared).
        dtype: Arrow type of the values.
        missing: rows without a value; NaN is missing.
        counts: rows per bin, missing rows left out. Numeric: below the first edge, then between edges, then
            from the last edge on. Categorical: one per category, then all other values; with a `tail` they
            are of every other row, because rows that chose the categories would overstate them.
        edges: rising bin edges of a numeric column; a value on an edge is above it.
        categories: the most frequent values of a categorical column.
        distinct: number of different values.
        infinite: rows with plus or minus infinity, which are counted in the outer bins.
        moments: of the finite values; None without any.
        tail: of a categorical column with more different values than are kept.
    """

    name: str
    kind: Kind
    dtype: str
    missing: int
    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    distinct: int = 0
    infinite: int = 0
    moments: Moments | None = None
    tail: Tail | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceProfile:
    """The frozen statistics that a drift monitor compares with. It holds no row of the data.

    Attributes:
        rows: number of reference rows.
        columns: the features, in the order of the data.
        predictions: what the model answered on these rows, when given.
        labels: the true values of these rows, when given.
        quality: how good the predictions were and what estimates need; None without both of them.
        multivariate: how the features move together; None with fewer than two columns or too few rows.
    """

    rows: int
    columns: tuple[ColumnProfile, ...]
    predictions: ColumnProfile | None = None
    labels: ColumnProfile | None = None
    quality: ReferenceQuality | None = None
    multivariate: multivariate.MultivariateProfile | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The profile as JSON; `from_json` gives back an equal profile."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ReferenceProfile:
        """Read what `to_json` wrote.

        Raises:
            DataError: the text is no profile, or one that a newer version wrote.
        """
        try:
            profile = msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise DataError("This is no reference profile", why=str(error)) from error
        if profile.schema != SCHEMA:
            raise DataError(
                f"The reference profile has schema {profile.schema}, this version reads schema {SCHEMA}",
                hint="Build the profile again, or upgrade mlflow-deploy",
            )
        return profile


def build_profile(
    data: Data,
    *,
    predictions: Any = None,
    labels: Any = None,
    probabilities: Any = None,
    classes: Sequence[Any] | None = None,
    threshold: float = 0.5,
) -> ReferenceProfile:
    """Profile the rows that later windows are compared with; one column is in memory at a time.

    Args:
        data: feature columns of the training or validation rows: a pandas DataFrame, a pyarrow Table, or the
            path of a Parquet file or of a folder of them.
        predictions: the model's answers on these rows, one-dimensional.
        labels: the true values of these rows, one-dimensional. With predictions, the quality on these rows is
            kept too, with what `estimate_performance` needs.
        probabilities: of the positive class, or of shape [rows, classes], where `predictions` does not have
            them.
        classes: in the order of the probabilities; of two, the second is the positive one.
        threshold: probability of the positive class from which on it is predicted.

    Raises:
        DataError: the data cannot be read, or predictions or labels are not one per row.
    """
    table = open_table(data)
    columns = tuple(_profile_column(table, name) for name in table.names)
    answers = predictions if predictions is not None else probabilities
    quality = None
    if labels is not None and answers is not None:
        quality = fit_quality(table, labels, predictions, probabilities, classes, threshold)
    return ReferenceProfile(
        rows=table.rows,
        columns=columns,
        multivariate=_profile_together(table, columns),
        predictions=None if predictions is None else _profile_values(PREDICTION, predictions, table.rows),
        labels=None if labels is None else _profile_values(LABEL, labels, table.rows),
        quality=quality,
    )


def _profile_values(name: str, values: Any, rows: int) -> ColumnProfile:
    return _profile_column(values_table(name, values, rows), name)


def _profile_together(
    table: Table, columns: Sequence[ColumnProfile]
) -> multivariate.MultivariateProfile | None:
    used = [column for column in columns if column.distinct > 1][: multivariate.MAX_COLUMNS]
    picked = multivariate.sample_positions(table.rows)
    bins = [_sampled_bins(table, column, picked) for column in used]
    if not bins:
        return None
    return multivariate.fit(
        [column.name for column in used], [column.counts for column in used], np.column_stack(bins)
    )


def _sampled_bins(
    table: Table, column: ColumnProfile, picked: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    at, found = 0, []
    for part in table.column(column.name):
        found.append(bin_of(column, part_of_sample(part, at, picked)))
        at += len(part)
    return np.concatenate(found)


def part_of_sample(array: pa.Array, at: int, picked: npt.NDArray[np.int64]) -> pa.Array:
    """The values of a batch that are in the sample.

    Args:
        array: the batch.
        at: number of its first row.
        picked: rising numbers of the rows in the sample.
    """
    first, last = np.searchsorted(picked, (at, at + len(array)))
    return array.take(pa.array(picked[first:last] - at))


def bin_of(column: ColumnProfile, array: pa.Array) -> npt.NDArray[np.int64]:
    """Number of the bin of each value, `multivariate.MISSING` where there is none."""
    if column.kind == "numeric":
        values = numbers(array)
        found = np.searchsorted(np.asarray(column.edges, dtype=np.float64), values, side="right")
        return np.where(np.isnan(values), multivariate.MISSING, found).astype(np.int64)
    values = texts(array)
    codes = pc.index_in(values, value_set=pa.array(column.categories, pa.large_string()))
    known = np.asarray(pc.fill_null(codes, len(column.categories)).to_numpy(zero_copy_only=False))
    missing = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
    return np.where(missing, multivariate.MISSING, known).astype(np.int64)


def _profile_column(table: Table, name: str) -> ColumnProfile:
    parts = list(table.column(name))
    kinds = {kind_of(part.type) for part in parts} - {"empty"}
    types = sorted({str(part.type) for part in parts if kind_of(part.type) != "empty"})
    dtype = " or ".join(types) or "null"
    if kinds == {"numeric"}:
        return _profile_numbers(name, dtype, np.concatenate([numbers(part) for part in parts]))
    if kinds == {"categorical"}:
        return _profile_texts(name, dtype, parts)
    missing = sum(int(part.null_count) for part in parts)
    return ColumnProfile(name=name, kind="unsupported" if kinds else "empty", dtype=dtype, missing=missing)


def _profile_numbers(name: str, dtype: str, values: npt.NDArray[np.float64]) -> ColumnProfile:
    finite = np.sort(values[np.isfinite(values)])
    edges = bin_edges(finite)
    return ColumnProfile(
        name=name,
        kind="numeric",
        dtype=dtype,
        missing=int(np.isnan(values).sum()),
        counts=tuple(count_numbers(values, edges).tolist()),
        edges=tuple(edges.tolist()),
        distinct=int((np.diff(finite) > 0).sum()) + 1 if finite.size else 0,
        infinite=int(np.isinf(values).sum()),
        moments=_moments(finite),
    )


def _profile_texts(name: str, dtype: str, parts: list[pa.Array]) -> ColumnProfile:
    even, odd = _count_texts(parts, 0), _count_texts(parts, 1)
    seen = even + odd
    long = len(seen) > MAX_CATEGORIES
    chosen, counted = (even, odd) if long else (seen, seen)
    # Ties are broken by name, so that the same rows in another order give the same profile.
    kept = sorted(chosen, key=lambda value: (-chosen[value], value))[:MAX_CATEGORIES]
    counts = [counted[value] for value in kept]
    return ColumnProfile(
        name=name,
        kind="categorical",
        dtype=dtype,
        missing=sum(int(part.null_count) for part in parts),
        counts=(*counts, counted.total() - sum(counts)),
        categories=tuple(kept),
        distinct=len(seen),
        tail=_tail(seen) if long else None,
    )


def _count_texts(parts: list[pa.Array], parity: int) -> Counter[str]:
    """Rows per value, of every other row."""
    seen: Counter[str] = Counter()
    at = 0
    for part in parts:
        rows = pa.array(np.arange((parity - at) % 2, len(part), 2))
        at += len(part)
        for entry in texts(part.take(rows)).drop_null().value_counts().to_pylist():
            seen[entry["values"]] += entry["counts"]
    return seen


def _tail(seen: Counter[str]) -> Tail:
    rows = np.zeros(MARKS, dtype=np.int64)
    np.add.at(rows, text_marks(list(seen)), list(seen.values()))
    bits = np.packbits(rows > 0).tobytes()
    return Tail(marks=base64.b64encode(zlib.compress(bits, 9)).decode(), once=int((rows == 1).sum()))


def text_marks(values: Sequence[str]) -> npt.NDArray[np.int64]:
    """The hash of each text, in [0, MARKS); the same in every process."""
    sums = (zlib.crc32(value.encode()) for value in values)
    # The lower bits of the checksums of similar texts collide; multiplying mixes all bits into the upper ones.
    mixed = np.fromiter(sums, dtype=np.uint64, count=len(values)) * np.uint64(2_654_435_761)
    return ((mixed & np.uint64(0xFFFFFFFF)) >> np.uint64(16)).astype(np.int64)


def _moments(finite: npt.NDArray[np.float64]) -> Moments | None:
    if not finite.size:
        return None
    # Scaled first, because the squares of very large values overflow.
    scale = max(abs(float(finite[0])), abs(float(finite[-1]))) or 1.0
    std = float(np.std(finite / scale, ddof=min(1, finite.size - 1))) * scale
    mean = float(np.mean(finite / scale)) * scale
    return Moments(
        mean=mean, std=std if math.isfinite(std) else 0.0, min=float(finite[0]), max=float(finite[-1])
    )


def bin_edges(ordered: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Edges of about `BINS` equally filled bins over sorted finite values.

    Up to twice as many different values get a bin each. A value that fills whole quantiles, such as zero in
    rainfall, gets a bin of its own, so that its share is watched. The last edge lies just above the largest
    value: smaller and larger values than the reference had fall outside the edges.
    """
    if not ordered.size:
        return ordered
    above = min(math.nextafter(float(ordered[-1]), math.inf), sys.float_info.max)
    values = ordered[np.concatenate(([True], np.diff(ordered) > 0))]
    if values.size <= 2 * BINS:
        return np.unique(np.append(values, above))
    quantiles = ordered[np.linspace(0, ordered.size - 1, BINS + 1).round().astype(int)]
    cuts, repeats = np.unique(quantiles, return_counts=True)
    heavy = cuts[repeats > 1]
    inner = cuts[(cuts < ordered[-1]) | (repeats > 1)]
    return np.unique(np.concatenate((inner, np.nextafter(heavy, np.inf), [above])))


def count_numbers(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Values per bin, shape [edges + 1]: below the first edge, between edges, from the last one on. NaN is
    in no bin."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=edges.size + 1)
    # NaN sorts behind every edge.
    counts[edges.size] -= np.isnan(values).sum()
    return counts.astype(np.int64)


def numbers(array: pa.Array) -> npt.NDArray[np.float64]:
    """A numeric or empty Arrow array as floats, NaN where it is missing."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    floats = pc.fill_null(pc.cast(array, pa.float64(), safe=False), math.nan)
    return np.asarray(floats.to_numpy(zero_copy_only=False), dtype=np.float64)


def texts(array: pa.Array) -> pa.Array:
    """A text or empty Arrow array, its dictionary resolved."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return pc.cast(array, pa.large_string())
