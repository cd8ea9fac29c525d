"""Compares how the answers of two revisions are distributed, on different requests of the same stream.

The distance is that of Kolmogorov and Smirnov: the largest difference between the shares of answers up to any
value. Numbers have their order, labels the alphabetical one, and missing answers come last; any fixed order
will do. With two labels it is the difference of their shares.

The Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant bounds, for any distribution, how far a
sample's shares lie from the true ones. The rollout looks again and again, so the error probability is spent
over the looks: the k-th gets 1/(k(k+1)) of it, which adds up to all of it, and looks are taken only each time
both samples have grown by half. All bounds then hold at once with at least the declared probability, and the
tightest may be used.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Iterable

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.rollout.analysis import Verdict
from mlflow_deploy.rollout.answers import Value, answer_rows
from mlflow_deploy.serving.recorder import Record

_GROWTH = 1.5
_MOST_VALUES = 8
_MOST_ANSWERS = 20_000
_OK = 200

_Ordered = tuple[int, float | str]


class AnswerShift:
    """How far the candidate's answers surely lie from the stable revision's.

    One row of each request counts, chosen by its id, because the rows of a request resemble each other.
    """

    def __init__(self, spec: AnalysisSpec, share: float = 1.0) -> None:
        """Begin with no answers.

        Args:
            share: part of the error probability that may be spent here.
        """
        self._spec = spec
        self._alpha = spec.alpha * share
        self._samples: dict[bool, list[tuple[_Ordered, ...]]] = {True: [], False: []}
        self._width = 0
        self._unreadable = 0
        self._looks = 0
        self._next = spec.min_requests
        self._lower, self._upper, self._distance = 0.0, 1.0, 0.0

    def add(self, records: Iterable[Record], *, stable: bool) -> None:
        """Take what one side has recorded; failed requests tell nothing about answers."""
        sample = self._samples[stable]
        for record in records:
            if record.status != _OK or len(sample) >= _MOST_ANSWERS:
                continue
            try:
                rows = answer_rows(record)
            except ValueError:
                self._unreadable += 1
                continue
            if rows:
                row = rows[zlib.crc32(record.id.encode()) % len(rows)]
                self._width = self._width or min(len(row), _MOST_VALUES)
                values = (*row, *[None] * self._width)[: self._width]
                sample.append(tuple(_ordered(value) for value in values))
        fewer = min(map(len, self._samples.values()))
        if fewer >= self._next:
            self._look()
            self._next = math.ceil(fewer * _GROWTH)

    def verdict(self) -> Verdict:
        """Whether the answers surely lie further apart, or surely not further apart, than is allowed."""
        limit = self._spec.max_answer_shift
        stable, candidate = len(self._samples[True]), len(self._samples[False])
        counts = f"answers {self._distance:.2f} apart ({candidate} beside {stable} of the stable revision)"
        if self._lower > limit:
            return Verdict("failed", f"too different {counts}; allowed are {limit:g}")
        if not self._looks:
            few = f"too few answers to compare: {candidate} beside {stable} of the stable revision"
            unreadable = f", {self._unreadable} could not be read" if self._unreadable else ""
            return Verdict("undecided", few + unreadable)
        if self._upper > limit:
            return Verdict("undecided", f"not yet enough to tell how different: {counts}")
        return Verdict("passed", counts)

    def _look(self) -> None:
        self._looks += 1
        alpha = self._alpha / (self._looks * (self._looks + 1)) / max(self._width, 1) / 2
        stable, candidate = self._samples[True], self._samples[False]
        error = sum(math.sqrt(math.log(2 / alpha) / (2 * len(each))) for each in (stable, candidate))
        columns = zip(zip(*stable, strict=True), zip(*candidate, strict=True), strict=True)
        self._distance = max((_distance(one, other) for one, other in columns), default=0.0)
        self._lower = max(self._lower, self._distance - error)
        self._upper = min(self._upper, self._distance + error)


def _distance(one: Iterable[_Ordered], other: Iterable[_Ordered]) -> float:
    """The largest difference between the shares of values up to any value."""
    left, right = sorted(one), sorted(other)
    return max(
        abs(bisect_right(left, value) / len(left) - bisect_right(right, value) / len(right))
        for value in {*left, *right}
    )


def _ordered(value: Value) -> _Ordered:
    if value is None:
        return (2, "")
    if isinstance(value, str):
        return (1, value)
    return (0, float(value))
