"""Real flights for the monitoring tests."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.conftest import load_project


@pytest.fixture(scope="session")
def flights() -> pd.DataFrame:
    """Flights of January, February, March and July with `month`."""
    rows = load_project("flight_delay", "data")["data"].load_flights([1, 2, 3, 7])
    return rows.assign(month=rows["time"].dt.tz_convert("America/New_York").dt.month)


@pytest.fixture(scope="session")
def features() -> list[str]:
    """Names of the feature columns."""
    return list(load_project("flight_delay", "data")["data"].FEATURES)


@pytest.fixture(scope="session")
def winter(flights: pd.DataFrame, features: list[str]) -> pd.DataFrame:
    """Features of January and February in random order."""
    rows = flights.loc[flights["month"] <= 2, features]
    return rows.sample(frac=1.0, random_state=7, ignore_index=True)
