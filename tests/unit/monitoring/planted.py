"""Real rows with 30 mixed columns, windows of them without any change, and changes planted in one column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tests.conftest import load_project

TEXTS = ("carrier", "tailnum", "origin", "dest", "type", "manufacturer", "model", "engine")
REFERENCE_ROWS = 20_000
WINDOW_ROWS = 2_000


def wide_flights() -> pd.DataFrame:
    """All flights from New York in 2013 with weather and plane: 22 columns of numbers and 8 of text."""
    folder = load_project("flight_delay", "data")["data"].data_folder()
    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(folder / "planes.csv")[["tailnum", "type", "manufacturer", "model", "engine"]]
    rows = flights.merge(weather, on=["origin", "time_hour"], how="left").merge(
        planes, on="tailnum", how="left"
    )
    return rows.drop(columns=["year", "time_hour"])


def quiet_windows(
    rows: pd.DataFrame, splits: int, windows: int, size: int = WINDOW_ROWS, seed: int = 1
) -> Iterator[tuple[pd.DataFrame, list[pd.DataFrame]]]:
    """Random splits of the rows: a reference, and windows drawn from the other rows."""
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.choice(len(rows), REFERENCE_ROWS + windows * size, replace=False)
        reference, rest = order[:REFERENCE_ROWS], order[REFERENCE_ROWS:]
        yield (
            rows.iloc[reference].reset_index(drop=True),
            [rows.iloc[part].reset_index(drop=True) for part in rest.reshape(windows, size)],
        )


Plant = Callable[[pd.Series, np.random.Generator], pd.Series]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change planted in one column of a window.

    Attributes:
        rows: size of the window.
        of: kind of the columns that it is planted in.
        plant: the changed column.
    """

    name: str
    rows: int
    of: str
    plant: Plant


def _shift(values: pd.Series, _: np.random.Generator) -> pd.Series:
    return values + 0.25 * values.std()


def _scale(values: pd.Series, _: np.random.Generator) -> pd.Series:
    return values.mean() + 1.3 * (values - values.mean())


def _new_category(values: pd.Series, rng: np.random.Generator) -> pd.Series:
    return values.mask(rng.random(len(values)) < 0.05, "never seen")


def _lose(values: pd.Series, rng: np.random.Generator) -> pd.Series:
    """Five points of all rows lose their value, also where many had none."""
    there = values.notna()
    return values.mask(there & (rng.random(len(values)) < 0.05 / there.mean()))


def _corrupt(values: pd.Series, _: np.random.Generator) -> pd.Series:
    """The wrong unit: feet for miles, seconds for minutes."""
    return values * 60.0


CHANGES = (
    Change(name="mean shifted by 0.25 sd", rows=2_000, of="numeric", plant=_shift),
    Change(name="scale x1.3", rows=2_000, of="numeric", plant=_scale),
    Change(name="5 % new category", rows=2_000, of="text", plant=_new_category),
    Change(name="missing share +5 points", rows=2_000, of="any", plant=_lose),
    Change(name="one corrupted column (x60)", rows=500, of="numeric", plant=_corrupt),
)


def planted(change: Change, windows: list[pd.DataFrame], seed: int = 2) -> Iterator[tuple[pd.DataFrame, str]]:
    """Each window with the change in one column, and its name; the columns take turns."""
    names = {
        "text": list(TEXTS),
        "numeric": [name for name in windows[0].columns if name not in TEXTS],
        "any": list(windows[0].columns),
    }[change.of]
    rng = np.random.default_rng(seed)
    for turn, window in enumerate(windows):
        name = names[turn % len(names)]
        rows = window.head(change.rows)
        yield rows.assign(**{name: change.plant(rows[name], rng)}), name
