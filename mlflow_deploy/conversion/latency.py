"""How fast forms answer on this machine, and which of them is the fastest beyond doubt."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion.report import plain
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows

BATCHES = (1, 64)
"""Rows per request that are measured."""

CLEARLY = 1.2
"""How many times faster a form must be than one that stands before it in the table, to be preferred."""

ROUNDS = 9
SECONDS = 0.02
"""A round repeats a form's calls for about this long."""

QUANTILE = 0.25
"""Which of the times counts: on a busy machine most calls, above all long ones, are interrupted by others."""

Answering = Callable[[bytes], bytes]
"""Body of /invocations -> body of the answer."""

Clock = Callable[[], float]
"""A clock in seconds."""


class Opener(Protocol):
    """Opens a servable in the back end that serves it."""

    def __call__(self, servable: Servable, content: Path, signature: Mapping[str, Any] | None) -> Answering:
        """Load the servable whose files lie in `content`.

        Raises:
            Exception: whatever the back end raises.
        """
        ...


@dataclass(frozen=True)
class Latency:
    """Time of a call in microseconds, by number of rows: parsing, computing and writing the answer.

    It is the lower quartile of the measured calls.
    """

    us: Mapping[int, float]

    def times_faster(self, other: Latency) -> float:
        """The geometric mean over the batch sizes of how many times faster this is than the other."""
        logs = [math.log(other.us[rows] / self.us[rows]) for rows in self.us]
        return math.exp(statistics.fmean(logs))


def fastest(latencies: Mapping[str, Latency]) -> str:
    """The form to take: the first, unless a later one is clearly faster.

    Measurements are noisy, and a choice that changes from day to day is worse than one that is a few percent
    slower, so forms stand in the order in which they are expected to be fast; 1.2 times overtakes.
    """
    forms = iter(latencies)
    best = next(forms)
    for form in forms:
        if latencies[form].times_faster(latencies[best]) >= CLEARLY:
            best = form
    return best


def measure(
    answering: Mapping[str, Answering],
    rows: Rows,
    batches: Sequence[int] = BATCHES,
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time requests in turns, so that what else the machine does hits all forms alike.

    Args:
        answering: the forms.
        rows: rows that all of them answer.
        batches: rows per request.
        clock: seconds; `time.thread_time` counts the work of the calling thread alone, on a busy machine too.
    """
    found: dict[str, dict[int, float]] = {form: {} for form in answering}
    for batch in batches:
        body = request_body(take(rows, [index % count(rows) for index in range(batch)]))
        repeats = {form: _repeats(call, body, clock) for form, call in answering.items()}
        times: dict[str, list[float]] = {form: [] for form in answering}
        for _ in range(ROUNDS):
            for form, call in answering.items():
                times[form] += [_time(call, body, clock) for _ in range(repeats[form])]
        for form, values in times.items():
            found[form][batch] = float(np.quantile(values, QUANTILE)) * 1e6
    return {form: Latency(values) for form, values in found.items()}


def _repeats(call: Answering, body: bytes, clock: Clock) -> int:
    # The first call may load and compile what later ones reuse.
    call(body)
    return int(np.clip(SECONDS / max(_time(call, body, clock), 1e-7), 1, 100))


def _time(call: Answering, body: bytes, clock: Clock) -> float:
    begun = clock()
    call(body)
    return clock() - begun


def request_body(rows: Rows) -> bytes:
    """A body for /invocations; missing values are null."""
    if isinstance(rows, Mapping):
        tensors = {name: array.tolist() for name, array in rows.items()}
        inputs = tensors[""] if list(tensors) == [""] else tensors
        return json.dumps({"inputs": inputs}).encode()
    cells: Sequence[Sequence[Any]] = [
        [None if value != value else plain(value) for value in row]
        for row in rows.itertuples(index=False, name=None)
    ]
    split = {"columns": [str(name) for name in rows.columns], "data": cells}
    return json.dumps({"dataframe_split": split}).encode()
