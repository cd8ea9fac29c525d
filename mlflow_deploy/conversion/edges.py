"""Rows at the edges of a signature: missing values, unseen texts, outliers, other scripts, large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlflow_deploy.conversion import tensor_edges
from mlflow_deploy.conversion.native import NUMERIC, Column, NativeModel
from mlflow_deploy.conversion.parity import Dataset, refer
from mlflow_deploy.conversion.rows import count, take
from mlflow_deploy.conversion.tensor_edges import BATCH

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.rows import Rows

Hints = Mapping[Any, tuple[Any, ...]]

SEED = 20130101
FEW = 16
VARIED_ROWS = 512
EXTREME_ROWS = 64
"""Fewer than of other edge rows: they do not gate, and models refuse many of them one by one."""
INVENTED = 256

PROBED = 8
"""How many numbers of tensors are tried as missing and as infinite; one that is refused refuses the tensor."""

TEXTS = (
    "", " ", "unseen value", "Ünïcödé naïve café", "Привет, мир", "你好 世界 数据", "日本語テキスト",
    "مرحبا بالعالم", "🙂 emoji 🚀", "ΑΒΓ ΣΊΣΥΦΟΣ", "\u0130STANBUL \u0131I", "straße STRASSE", "nan", "None",
    "tab\tand\nline", "x" * 500,
)  # fmt: skip
"""Texts that a converted model may read differently: scripts, case rules, white space, words for missing."""

HOLES = ("float", "double", "string")
"""Types of columns that can hold a missing value in a request."""

FRACTIONS = ("float", "double")
"""Types of columns that can hold Infinity in a request."""

OUTLIERS = (0.0, -1.0, 1.0, 0.5, 1e-6, 1e3, -1e3, 1e6)
EXTREMES = (1e-30, 16_777_217.0, 1e12, -1e12, 1e30, -1e30, 3e38, 1e300, -1e300)
INTEGERS = (0, -1, 1, 1000, -1000, 2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31))


def edge_datasets(native: NativeModel, base: Rows) -> Iterator[Dataset]:
    """Data sets of edge rows made from real rows by changing values inside the signature.

    Args:
        base: at least one row that fits the signature.
    """
    rng = np.random.default_rng(SEED)
    few = rng.choice(count(base), size=min(4, count(base)), replace=False)
    yield Dataset("single rows", take(base, few.tolist()), single=True)
    if isinstance(base, Mapping):
        table = tensor_edges.tabulate(native, base)
        hints = {
            column.name: native.hints.get(column.name[1], ()) if native.tensor else ()
            for column in table.columns
        }
        for dataset in _varied(table.columns, hints, table.frame, rng):
            yield replace(dataset, rows=table.rows(cast("pd.DataFrame", dataset.rows)))
        for name, rows in tensor_edges.other_sizes(native, base):
            yield Dataset(name, rows)
        for name, rows in tensor_edges.whole_numbers(native, base, rng):
            yield Dataset(name, rows, strict=name == tensor_edges.OUTSIDE_RANGE)
        if native.rows_at_once is None:
            yield Dataset("large batch", tensor_edges.large_batch(base, rng))
        return
    columns = tuple(column for column in native.columns if column.name in base.columns)
    yield from _varied(columns, native.hints, base, rng)
    yield Dataset("large batch", _mix(base, columns, rng))


def _varied(
    columns: Sequence[Column], hints: Hints, base: pd.DataFrame, rng: np.random.Generator
) -> Iterator[Dataset]:
    """Data sets in which one value of a row is changed, or several are missing."""
    numbers = [column for column in columns if column.type in NUMERIC]
    texts = [column for column in columns if column.type == "string"]
    holes = [column for column in columns if column.type in HOLES]
    if holes:
        yield Dataset("missing values", _holes(base, holes, rng))
    if texts:
        yield Dataset("unseen and non-ASCII texts", _vary(base, texts, rng, lambda _: TEXTS))
    if numbers:
        yield Dataset("outliers", _vary(base, numbers, rng, lambda column: _outliers(base, column)))
        extremes = _vary(base, numbers, rng, lambda column: _fit(EXTREMES, column), EXTREME_ROWS)
        yield Dataset("extreme numbers", extremes, gating=False)
    known = [column for column in columns if hints.get(column.name)]
    if known:
        rows = _vary(base, known, rng, lambda column: _known(hints, column))
        yield Dataset("values known to the model", rows)


def refuses(native: NativeModel, base: Rows, value: float) -> frozenset[Any]:
    """The columns in which the native model raises on a missing value or on Infinity.

    Args:
        base: rows that the native model answers.
        value: NaN or infinity; infinity is tried in columns of fractions only.

    Returns:
        Names of columns, or of tensors in which some number is refused.
    """
    types = HOLES if np.isnan(value) else FRACTIONS
    if isinstance(base, Mapping):
        table = tensor_edges.tabulate(native, base, PROBED)
        columns, frame = table.columns, table.frame
    else:
        columns, frame = tuple(column for column in native.columns if column.name in base.columns), base
    refused = set()
    for column in columns:
        if column.type not in types:
            continue
        row = frame.iloc[[0]].reset_index(drop=True)
        # In place, because a new column of NaN alone would be numbers, also where texts belong.
        _put(row, 0, column, value)
        rows = table.rows(row) if isinstance(base, Mapping) else row
        if refer(native, Dataset("refused", rows)).refused:
            refused.add(column.name[0] if isinstance(base, Mapping) else column.name)
    return frozenset(refused)


def _put(rows: pd.DataFrame, row: int, column: Column, value: Any) -> None:
    """Set one cell; by position, since a pair as a name would be read as two."""
    rows.iloc[row, list(rows.columns).index(column.name)] = value


def invent(native: NativeModel) -> Rows:
    """Rows made from the signature alone, for a model without example: values the model knows, or noise."""
    import pandas as pd

    rng = np.random.default_rng(SEED)
    if native.tensors:
        return tensor_edges.invent_tensors(native, TEXTS, rng, INVENTED)
    data: dict[Any, Any] = {}
    for column in native.columns:
        known = _known(native.hints, column)
        if known:
            data[column.name] = [known[i] for i in rng.integers(0, len(known), INVENTED)]
        elif column.type == "string":
            data[column.name] = [TEXTS[i] for i in rng.integers(0, len(TEXTS), INVENTED)]
        else:
            data[column.name] = rng.normal(size=INVENTED) * rng.choice([0.1, 1.0, 10.0, 100.0], INVENTED)
    return native.conform(pd.DataFrame(data))


def _known(hints: Hints, column: Column) -> tuple[Any, ...]:
    """Values that the model knows for a column, in the column's type."""
    values = hints.get(column.name, ())
    if column.type not in NUMERIC:
        return values
    return _typed([value for value in values if isinstance(value, (int, float))], column)


def _sample(base: pd.DataFrame, rng: np.random.Generator, count: int) -> pd.DataFrame:
    chosen = rng.choice(len(base), size=count, replace=count > len(base))
    return base.iloc[chosen].reset_index(drop=True)


def _holes(base: pd.DataFrame, columns: Sequence[Column], rng: np.random.Generator) -> pd.DataFrame:
    """One row per column with that column missing, then rows with several missing, then all."""
    rows = _sample(base, rng, 2 * len(columns) + FEW + 1)
    for index in range(len(rows)):
        if index < 2 * len(columns):
            gone = [columns[index // 2]]
        elif index < len(rows) - 1:
            gone = [column for column in columns if rng.random() < 0.4]
        else:
            gone = list(columns)
        for column in gone:
            _put(rows, index, column, np.nan)
    return rows


def _vary(
    base: pd.DataFrame,
    columns: Sequence[Column],
    rng: np.random.Generator,
    values: Callable[[Column], tuple[Any, ...]],
    limit: int = VARIED_ROWS,
) -> pd.DataFrame:
    """Rows with one column changed to each of its values, at most `limit` in all."""
    changes = [(column, value) for column in columns for value in values(column)]
    if len(changes) > limit:
        changes = [changes[i] for i in sorted(rng.choice(len(changes), limit, replace=False))]
    rows = _sample(base, rng, len(changes))
    for column in columns:
        if column.type in NUMERIC:
            continue
        rows[column.name] = rows[column.name].astype(object)
    for index, (column, value) in enumerate(changes):
        _put(rows, index, column, value)
    return rows


def _outliers(base: pd.DataFrame, column: Column) -> tuple[Any, ...]:
    """Small numbers, and up to a thousand times beyond what the rows hold."""
    values = base[column.name].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    spread = max(high - low, abs(high), 1e-3)
    around = tuple(
        x + sign * spread * factor for x, sign in ((low, -1), (high, 1)) for factor in (0.1, 10, 1000)
    )
    near = tuple(value for value in OUTLIERS if abs(value) <= 1000 * spread)
    return _fit(near + around, column)


def _fit(values: Sequence[float], column: Column) -> tuple[Any, ...]:
    """Numbers in the column's own type, and for whole numbers the borders of the float types."""
    return _typed([*values, *(INTEGERS if column.type in ("integer", "long") else ())], column)


def _typed(values: Sequence[float], column: Column) -> tuple[Any, ...]:
    """Numbers in the column's own type; those that it cannot hold are left out."""
    if column.type == "double":
        return tuple(float(value) for value in values)
    if column.type == "float":
        limit = float(np.finfo(np.float32).max)
        return tuple(float(np.float32(value)) for value in values if abs(value) < limit)
    bound = 2**31 if column.type == "integer" else 2**53
    whole = (int(np.floor(value)) for value in values if abs(value) < bound)
    return tuple(dict.fromkeys(whole))


def _mix(base: pd.DataFrame, columns: Sequence[Column], rng: np.random.Generator) -> pd.DataFrame:
    """4096 rows whose columns are drawn independently, and whose real numbers lie between those of the rows."""
    import pandas as pd

    data = {}
    for column in columns:
        values = base[column.name]
        first = values.iloc[rng.integers(0, len(base), BATCH)].reset_index(drop=True)
        if column.type in ("double", "float"):
            second = values.iloc[rng.integers(0, len(base), BATCH)].reset_index(drop=True)
            # Half the rows keep values that really occur: decimals and whole numbers meet thresholds exactly.
            weight = np.where(rng.random(BATCH) < 0.5, 0.0, rng.random(BATCH))
            mixed = first + weight * (second - first)
            first = first.where(weight == 0.0, mixed.where(mixed.notna(), first)).astype(values.dtype)
        data[column.name] = first
    return pd.DataFrame(data)
