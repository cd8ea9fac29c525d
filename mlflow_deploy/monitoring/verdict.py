"""What a monitor finds in one window: the numbers, the verdict, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mlflow_deploy.monitoring.results import WindowState


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The part of a window's result that its rows decide.

    Attributes:
        page: the HTML page for people, empty without one.
    """

    state: WindowState
    summary: str
    reasons: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: int = 0
    page: str = ""


def finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are numbers."""
    return {
        name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)
    }


def worst(states: Iterable[WindowState], otherwise: WindowState) -> WindowState:
    """The gravest of some verdicts."""
    found = set(states)
    if "alert" in found:
        return "alert"
    return "warning" if "warning" in found else otherwise
