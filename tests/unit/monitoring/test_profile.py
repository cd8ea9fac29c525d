"""A profile freezes what its rows looked like, survives JSON, and takes any column."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring import ColumnProfile, ReferenceProfile, build_profile


def only(values: object) -> ColumnProfile:
    """The profile of one column."""
    return build_profile(pd.DataFrame({"x": values})).columns[0]


def test_every_row_is_in_a_bin_or_missing(winter: pd.DataFrame) -> None:
    profile = build_profile(winter)
    assert [column.name for column in profile.columns] == list(winter.columns)
    for column in profile.columns:
        assert sum(column.counts) + column.missing == profile.rows == len(winter)
        assert column.missing == winter[column.name].isna().sum()
        assert column.distinct == winter[column.name].nunique()


def test_moments_are_those_of_pandas(winter: pd.DataFrame) -> None:
    temp = next(column for column in build_profile(winter).columns if column.name == "temp")
    assert temp.moments is not None
    expected = winter["temp"].agg(["mean", "std", "min", "max"])
    assert [temp.moments.mean, temp.moments.std, temp.moments.min, temp.moments.max] == pytest.approx(
        expected.tolist()
    )


def test_json_gives_back_the_same_profile(winter: pd.DataFrame) -> None:
    profile = build_profile(winter, predictions=np.arange(len(winter)) % 2, labels=["a"] * len(winter))
    text = profile.to_json()
    assert ReferenceProfile.from_json(text) == ReferenceProfile.from_json(text.encode()) == profile
    assert len(text) < 20_000


@pytest.mark.parametrize("text", ["", "{}", '{"rows": "many", "columns": []}', b"\xff"])
def test_what_is_no_profile_is_refused(text: str | bytes) -> None:
    with pytest.raises(DataError, match="no reference profile"):
        ReferenceProfile.from_json(text)


def test_a_profile_of_a_newer_schema_is_refused() -> None:
    with pytest.raises(DataError, match="schema 99, this version reads schema 1"):
        ReferenceProfile.from_json('{"rows": 1, "columns": [], "schema": 99}')


def test_pandas_arrow_and_parquet_give_the_same_profile(winter: pd.DataFrame, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(winter, preserve_index=False)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7_000)
    halves = tmp_path / "halves"
    halves.mkdir()
    pq.write_table(table.slice(0, 20_000), halves / "a.parquet")
    pq.write_table(table.slice(20_000), halves / "b.parquet")
    profiles = [
        build_profile(data)
        for data in (winter, table, tmp_path / "rows.parquet", str(tmp_path / "rows.parquet"), halves)
    ]

    def numbers(profile: ReferenceProfile) -> list[object]:
        return [(c.name, c.kind, c.counts, c.edges, c.categories, c.missing) for c in profile.columns]

    assert all(numbers(profile) == numbers(profiles[0]) for profile in profiles)


def test_a_value_that_fills_whole_quantiles_has_its_own_bin() -> None:
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(10_000) < 0.93, 0.0, rng.exponential(size=10_000))
    column = only(rain)
    assert column.counts[1] == (rain == 0.0).sum()
    middle = only(np.where(rng.random(10_000) < 0.5, 3.0, rng.normal(3.0, 1.0, 10_000)))
    own = middle.edges.index(3.0)
    assert middle.counts[own + 1] == pytest.approx(5_000, abs=200)


def test_few_different_numbers_have_a_bin_each() -> None:
    column = only([1, 2, 2, 5] * 10)
    assert column.edges[:3] == (1.0, 2.0, 5.0)
    assert column.counts == (0, 10, 20, 10, 0)
    assert only([True, False, True]).counts == (0, 1, 2, 0)


def test_rare_categories_become_other() -> None:
    column = only([f"v{index}" for index in range(300)] + ["often"] * 50)
    assert column.categories[0] == "often"
    # Chosen on the even rows, counted on the odd ones: rows that choose what is frequent overstate it.
    assert column.counts[0] == 25
    assert (len(column.categories), column.counts[-1], column.distinct) == (100, 150, 301)
    assert column.tail is not None
    assert column.tail.once == pytest.approx(300, abs=6)
    assert column.tail.seen().sum() == pytest.approx(301, abs=3)


@pytest.mark.parametrize(
    ("values", "kind", "missing", "counts"),
    [
        ([None, None], "empty", 2, ()),
        ([np.nan, np.nan], "numeric", 2, (0,)),
        ([np.inf, -np.inf, 1.0], "numeric", 0, (1, 1, 1)),
        ([np.inf, np.inf], "numeric", 0, (2,)),
        ([sys.float_info.max, 0.0], "numeric", 0, (0, 1, 1)),
        ([decimal.Decimal("1.5"), None], "numeric", 1, (0, 1, 0)),
        ([datetime.date(2013, 1, 1)], "unsupported", 0, ()),
        ([[1], [2]], "unsupported", 0, ()),
        ([1, "one", None], "categorical", 1, (1, 1, 0)),
        (pd.Categorical(["a", "b", None]), "categorical", 1, (1, 1, 0)),
        (pd.array([1, None], dtype="Int64"), "numeric", 1, (0, 1, 0)),
        ([], "empty", 0, ()),
    ],
    ids=str,
)
def test_odd_columns_are_profiled(values: object, kind: str, missing: int, counts: tuple[int, ...]) -> None:
    profile = build_profile(pd.DataFrame({"x": values}))
    column = profile.columns[0]
    assert (column.kind, column.missing, column.counts) == (kind, missing, counts)
    assert ReferenceProfile.from_json(profile.to_json()) == profile


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "open.parquet"
    broken.write_bytes(b"PAR1 and no footer")
    twice = pd.DataFrame([[1, 2]], columns=["x", "x"])
    for data, words in (
        (broken, "cannot be read as Parquet"),
        (tmp_path / "none.parquet", "cannot be read as Parquet"),
        (tmp_path / "none", "cannot be read as Parquet"),
        (twice, "same name: x"),
        ({"x": [1]}, "cannot be read from dict"),
    ):
        with pytest.raises(DataError, match=words):
            build_profile(data)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet file"):
        build_profile(tmp_path / "empty")


@pytest.mark.parametrize(
    ("predictions", "words"), [([1], "1 predictions for 2 rows"), (np.zeros((2, 2)), "one-dimensional")]
)
def test_predictions_must_be_one_per_row(predictions: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_profile(pd.DataFrame({"x": [1, 2]}), predictions=predictions)


def test_importing_the_room_loads_no_pandas() -> None:
    heavy = "{'pandas', 'scipy', 'mlflow', 'evidently'}"
    code = f"import sys, mlflow_deploy.monitoring; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
