"""Compares a shadow's answers with the stable revision's row by row, on the same requests."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.rollout.analysis import Verdict
from mlflow_deploy.rollout.answers import Row, Value, answer_rows, shortened, shown_input
from mlflow_deploy.rollout.sequential import share_bounds
from mlflow_deploy.serving.recorder import Record
from mlflow_deploy.targets.base_records import DifferentRow, ShadowReport

_WORST_ROWS = 5
_WAIT_SECONDS = 15.0
_WAITING_BYTES = 64 * 1024 * 1024
_OK = 200
_BUSY = (429, 503)

_Key = tuple[str, int]


@dataclass
class _Waiting:
    """A record whose other side has not come yet."""

    record: Record
    stable: bool
    until: float

    @property
    def size(self) -> int:
        return len(self.record.request) + len(self.record.answer)


class Disagreement:
    """Joins the records of both sides by request id and body, and counts what differs.

    The rows of one request resemble each other, so a request counts once, with the share of its rows that
    differ; confidence sequences hold for such shares as they do for hits and misses.
    """

    def __init__(self, spec: AnalysisSpec) -> None:
        self._spec = spec
        # In the order of their coming, so that the oldest are given up first.
        self._waiting: dict[_Key, list[_Waiting]] = {}
        self._bytes = 0
        self._requests = self._rows = self._different = 0
        self._unmatched = self._unreadable = self._busy = 0
        self._shares = 0.0
        self._worst: list[DifferentRow] = []

    def add(self, records: Iterable[Record], *, stable: bool) -> None:
        """Take what one side has recorded."""
        now = time.monotonic()
        for record in records:
            key = (record.id, record.digest)
            others = self._waiting.get(key, [])
            other = next((each for each in others if each.stable != stable), None)
            if other is None:
                waiting = _Waiting(record, stable, now + _WAIT_SECONDS)
                self._waiting.setdefault(key, []).append(waiting)
                self._bytes += waiting.size
                continue
            self._drop(key, other)
            self._compare(*((record, other.record) if stable else (other.record, record)))
        while self._waiting:
            key, oldest = next((key, each[0]) for key, each in self._waiting.items())
            if oldest.until > now and self._bytes <= _WAITING_BYTES:
                break
            self._drop(key, oldest)
            self._unmatched += 1

    def verdict(self) -> Verdict:
        """Whether surely more, or surely not more, rows differ than are allowed."""
        spec, requests = self._spec, self._requests
        counts = f"{self._different} of {self._rows} rows in {requests} requests were answered differently"
        lower, upper = share_bounds(self._shares, requests, spec.alpha)
        if lower > spec.max_disagreement:
            return Verdict("failed", f"too many differences: {counts}")
        if requests < spec.min_requests:
            return Verdict(
                "undecided", f"too few requests were compared: {counts}, {spec.min_requests} are wanted"
            )
        # What no difference at all would leave open with the wanted number of requests is close enough.
        close = max(spec.max_disagreement, share_bounds(0, min(requests, spec.min_requests), spec.alpha)[1])
        if upper > close or self._shares > spec.max_disagreement * requests:
            return Verdict("undecided", f"the share of differences is not yet known well enough: {counts}")
        return Verdict("passed", counts)

    def report(self, stable: CallStats, candidate: CallStats, *, lost: int, oversized: int) -> ShadowReport:
        """Everything that was found, for the record of the rollout."""
        return ShadowReport(
            requests=self._requests,
            rows=self._rows,
            different=self._different,
            disagreement=self._shares / self._requests if self._requests else 0.0,
            unmatched=self._unmatched,
            lost=lost,
            oversized=oversized,
            unreadable=self._unreadable,
            busy=self._busy,
            stable_p50_ms=stable.p50_ms,
            stable_p95_ms=stable.p95_ms,
            candidate_p50_ms=candidate.p50_ms,
            candidate_p95_ms=candidate.p95_ms,
            worst=tuple(self._worst),
        )

    # --- details ---

    def _drop(self, key: _Key, waiting: _Waiting) -> None:
        self._bytes -= waiting.size
        self._waiting[key].remove(waiting)
        if not self._waiting[key]:
            del self._waiting[key]

    def _compare(self, stable: Record, candidate: Record) -> None:
        if stable.status != _OK:
            # There is no answer to compare with; the error rates tell about these.
            return
        if candidate.status in _BUSY:
            self._busy += 1
            return
        try:
            expected = answer_rows(stable)
            given = answer_rows(candidate) if candidate.status == _OK else []
        except ValueError:
            self._unreadable += 1
            return
        self._requests += 1
        self._rows += len(expected)
        if len(given) != len(expected):
            text = f"status {candidate.status}" if candidate.status != _OK else f"{len(given)} rows"
            self._differ(len(expected), len(expected))
            self._keep(stable, 0, shortened(expected[:1]), text, math.inf)
            return
        different = 0
        for row, (one, other) in enumerate(zip(expected, given, strict=True)):
            distance = self._distance(one, other)
            if distance > 1:
                different += 1
                self._keep(stable, row, _shown(one), _shown(other), distance)
        self._differ(different, len(expected))

    def _differ(self, different: int, rows: int) -> None:
        self._different += different
        self._shares += different / rows if rows else 0.0

    def _distance(self, stable: Row, candidate: Row) -> float:
        """How many tolerances two rows lie apart, by the value that differs most."""
        if len(stable) != len(candidate):
            return math.inf
        return max(
            (self._apart(one, other) for one, other in zip(stable, candidate, strict=True)), default=0.0
        )

    def _apart(self, stable: Value, candidate: Value) -> float:
        if stable == candidate:
            return 0.0
        if not _is_number(stable) or not _is_number(candidate):
            return math.inf
        assert isinstance(stable, int | float)
        assert isinstance(candidate, int | float)
        allowed = self._spec.shadow_atol + self._spec.shadow_rtol * abs(stable)
        apart = abs(stable - candidate)
        return apart / allowed if allowed and math.isfinite(apart) else math.inf

    def _keep(self, record: Record, row: int, stable: str, candidate: str, distance: float) -> None:
        """Keep the row when it is among the worst."""
        if len(self._worst) == _WORST_ROWS and distance <= _far(self._worst[-1]):
            return
        found = DifferentRow(
            request_id=record.id,
            row=row,
            inputs=shown_input(record, row),
            stable=stable,
            candidate=candidate,
            distance=distance if math.isfinite(distance) else None,
        )
        self._worst = sorted([*self._worst, found], key=_far, reverse=True)[:_WORST_ROWS]


def _far(row: DifferentRow) -> float:
    return math.inf if row.distance is None else row.distance


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(row: Row) -> str:
    return shortened(row[0] if len(row) == 1 else row)
