"""The reference profile: what training or validation rows looked like, small and frozen."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring.tables import Data, Kind, Table, kind_of, open_table, values_table

SCHEMA = 1
BINS = 10
MAX_CATEGORIES = 100
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
class ColumnProfile:
    """One column of the reference.

    Attributes:
        kind: numeric (also booleans, as 0 and 1), categorical (text), empty (no value at all), or
            unsupported (times, lists and other types that are not compared).
        dtype: Arrow type of the values.
        missing: rows without a value; NaN is missing.
        counts: rows per bin, missing rows left out. Numeric: below the first edge, then between edges, then
            from the last edge on. Categorical: one per category, then all other values.
        edges: rising bin edges of a numeric column; a value on an edge is above it.
        categories: the most frequent values of a categorical column.
        distinct: number of different values.
        infinite: rows with plus or minus infinity, which are counted in the outer bins.
        moments: of the finite values; None without any.
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


@dataclass(frozen=True, kw_only=True)
class ReferenceProfile:
    """The frozen statistics that a drift monitor compares with. It holds no row of the data.

    Attributes:
        rows: number of reference rows.
        columns: the features, in the order of the data.
        predictions: what the model answered on these rows, when given.
        labels: the true values of these rows, when given.
    """

    rows: int
    columns: tuple[ColumnProfile, ...]
    predictions: ColumnProfile | None = None
    labels: ColumnProfile | None = None
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


def build_profile(data: Data, *, predictions: Any = None, labels: Any = None) -> ReferenceProfile:
    """Profile the rows that later windows are compared with; one column is in memory at a time.

    Args:
        data: feature columns of the training or validation rows: a pandas DataFrame, a pyarrow Table, or the
            path of a Parquet file or of a folder of them.
        predictions: the model's answers on these rows, one-dimensional.
        labels: the true values of these rows, one-dimensional.

    Raises:
        DataError: the data cannot be read, or predictions or labels are not one per row.
    """
    table = open_table(data)
    return ReferenceProfile(
        rows=table.rows,
        columns=tuple(_profile_column(table, name) for name in table.names),
        predictions=None if predictions is None else _profile_values(PREDICTION, predictions, table.rows),
        labels=None if labels is None else _profile_values(LABEL, labels, table.rows),
    )


def _profile_values(name: str, values: Any, rows: int) -> ColumnProfile:
    return _profile_column(values_table(name, values, rows), name)


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
    seen: Counter[str] = Counter()
    for part in parts:
        for entry in texts(part).drop_null().value_counts().to_pylist():
            seen[entry["values"]] += entry["counts"]
    # Ties are broken by name, so that the same rows in another order give the same profile.
    kept = sorted(seen, key=lambda value: (-seen[value], value))[:MAX_CATEGORIES]
    counts = [seen[value] for value in kept]
    return ColumnProfile(
        name=name,
        kind="categorical",
        dtype=dtype,
        missing=sum(int(part.null_count) for part in parts),
        counts=(*counts, seen.total() - sum(counts)),
        categories=tuple(kept),
        distinct=len(seen),
    )


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
