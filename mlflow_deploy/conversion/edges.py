"""Rows at the edges of a signature: missing values, unseen texts, outliers, other scripts, large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.native import NUMERIC, Column, NativeModel
from mlflow_deploy.conversion.parity import Dataset, refer

if TYPE_CHECKING:
    import pandas as pd

SEED = 20130101
BATCH = 4096
FEW = 16

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


def columns_of(native: NativeModel) -> tuple[Column, ...]:
    """The columns of the rows that a model takes; those of a tensor model are unnamed numbers or texts."""
    if native.tensor is None:
        return native.columns
    width = native.tensor.shape[1] if len(native.tensor.shape) > 1 else 1
    kind = "string" if native.tensor.dtype == "str" else "double"
    return tuple(Column(name=index, type=kind) for index in range(width))  # type: ignore[arg-type]


def edge_datasets(native: NativeModel, base: pd.DataFrame) -> Iterator[Dataset]:
    """Data sets of edge rows made from real rows by changing values inside the signature.

    Args:
        base: at least one row that fits the signature.
    """
    rng = np.random.default_rng(SEED)
    columns = [column for column in columns_of(native) if column.name in base.columns]
    yield Dataset("single rows", _sample(base, rng, min(4, len(base))), single=True)
    numbers = [column for column in columns if column.type in NUMERIC]
    texts = [column for column in columns if column.type == "string"]
    holes = [column for column in columns if column.type in HOLES]
    if holes:
        yield Dataset("missing values", _holes(base, holes, rng))
    if texts:
        yield Dataset("unseen and non-ASCII texts", _vary(base, texts, rng, lambda _: TEXTS))
    if numbers:
        yield Dataset("outliers", _vary(base, numbers, rng, lambda column: _outliers(base, column)))
        extremes = _vary(base, numbers, rng, lambda column: _fit(EXTREMES, column))
        yield Dataset("extreme numbers", extremes, gating=False)
    if native.hints:
        known = [column for column in columns if column.name in native.hints]
        yield Dataset(
            "values known to the model", _vary(base, known, rng, lambda column: _known(native, column))
        )
    yield Dataset("large batch", _mix(base, columns, rng))


def refuses(native: NativeModel, base: pd.DataFrame, value: float) -> frozenset[Any]:
    """The columns in which the native model raises on a missing value or on Infinity.

    Args:
        base: rows that the native model answers.
        value: NaN or infinity; infinity is tried in columns of fractions only.
    """
    types = HOLES if np.isnan(value) else FRACTIONS
    refused = set()
    for column in columns_of(native):
        if column.name not in base.columns or column.type not in types:
            continue
        row = base.iloc[[0]].reset_index(drop=True)
        # In place, because a new column of NaN alone would be numbers, also where texts belong.
        row.loc[0, column.name] = value
        if refer(native, Dataset("refused", row)).refused:
            refused.add(column.name)
    return frozenset(refused)


def invent(native: NativeModel) -> pd.DataFrame:
    """Rows made from the signature alone, for a model without example: values the model knows, or noise."""
    import pandas as pd

    rng = np.random.default_rng(SEED)
    data: dict[Any, Any] = {}
    for column in columns_of(native):
        known = _known(native, column)
        if known:
            data[column.name] = [known[i] for i in rng.integers(0, len(known), 256)]
        elif column.type == "string":
            data[column.name] = [TEXTS[i] for i in rng.integers(0, len(TEXTS), 256)]
        else:
            data[column.name] = rng.normal(size=256) * rng.choice([0.1, 1.0, 10.0, 100.0], 256)
    return native.conform(pd.DataFrame(data))


def _known(native: NativeModel, column: Column) -> tuple[Any, ...]:
    """Values that the model knows for a column, in the column's type."""
    values = native.hints.get(column.name, ())
    if column.type not in NUMERIC:
        return values
    return _typed([value for value in values if isinstance(value, (int, float))], column)


def _sample(base: pd.DataFrame, rng: np.random.Generator, count: int) -> pd.DataFrame:
    chosen = rng.choice(len(base), size=count, replace=count > len(base))
    return base.iloc[chosen].reset_index(drop=True)


def _holes(base: pd.DataFrame, columns: list[Column], rng: np.random.Generator) -> pd.DataFrame:
    """One row per column with that column missing, then rows with several missing, then all."""
    rows = _sample(base, rng, 2 * len(columns) + FEW + 1)
    for index in range(len(rows)):
        if index < 2 * len(columns):
            gone = [columns[index // 2]]
        elif index < len(rows) - 1:
            gone = [column for column in columns if rng.random() < 0.4]
        else:
            gone = columns
        for column in gone:
            rows.loc[index, column.name] = np.nan
    return rows


def _vary(
    base: pd.DataFrame,
    columns: list[Column],
    rng: np.random.Generator,
    values: Callable[[Column], tuple[Any, ...]],
) -> pd.DataFrame:
    """Rows with one column changed to each of its values, at most 512 in all."""
    changes = [(column, value) for column in columns for value in values(column)]
    if len(changes) > 512:
        changes = [changes[i] for i in sorted(rng.choice(len(changes), 512, replace=False))]
    rows = _sample(base, rng, len(changes))
    for column in columns:
        if column.type in NUMERIC:
            continue
        rows[column.name] = rows[column.name].astype(object)
    for index, (column, value) in enumerate(changes):
        rows.loc[index, column.name] = value
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


def _mix(base: pd.DataFrame, columns: list[Column], rng: np.random.Generator) -> pd.DataFrame:
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
