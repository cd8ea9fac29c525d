"""Two models side by side: size, latency at 1 and 64 rows, and a metric, as JSON, Markdown and HTML."""

from __future__ import annotations

import html
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows

BATCHES = (1, 64)
"""Rows per call that are measured."""

ROUNDS = 9
SECONDS = 0.02
"""A round repeats a call for about this long, so that the clock's steps do not count."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        name: what the table calls it.
        answer: rows -> answers, [rows] or [rows, k]; called for latency and for the metric.
        content: the bytes of its weights, or of its file.
        parameters: how many numbers it has learnt; 0 when unknown.
        timed: rows -> a call without arguments that answers them, when the way to be timed is not `answer`:
            what a framework's own objects are made of is no part of the model's latency.
    """

    name: str
    answer: Callable[[Rows], Array]
    content: bytes
    parameters: int
    timed: Callable[[Rows], Callable[[], object]] | None = None

    def call(self, rows: Rows) -> Callable[[], object]:
        """The call that is timed for these rows."""
        return self.timed(rows) if self.timed is not None else lambda: self.answer(rows)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        name: the model.
        parameters: how many numbers it has learnt.
        bytes: size of its weights or of its file.
        compressed_bytes: the same packed by zlib at level 6, as it travels.
        latency_us: microseconds of a call by rows per call, the best of interleaved rounds on one thread.
        metrics: name of the metric -> value on the rows with known answers.
    """

    name: str
    parameters: int
    bytes: int
    compressed_bytes: int
    latency_us: dict[int, float]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A model and what was made of it, measured in turns in one process.

    Attributes:
        method: what was done: "structured pruning", "magnitude masks (compression only)", "distillation"...
        before: the model that it was done to.
        after: the model that came out.
        agreement: share of rows for which both choose the same class; None for numbers.
        notes: what the reader has to know.
    """

    method: str
    before: Measurement
    after: Measurement
    agreement: float | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[tuple[str, str, str, str]]:
        """Rows of the table: what, before, after, and the gain."""
        one, two = self.before, self.after
        yield (
            "parameters",
            f"{one.parameters:,}",
            f"{two.parameters:,}",
            _times(one.parameters, two.parameters),
        )
        yield "size, kB", _kilo(one.bytes), _kilo(two.bytes), _times(one.bytes, two.bytes)
        packed = (one.compressed_bytes, two.compressed_bytes)
        yield "size compressed, kB", _kilo(packed[0]), _kilo(packed[1]), _times(*packed)
        for rows in one.latency_us:
            times = (one.latency_us[rows], two.latency_us[rows])
            yield f"latency at {rows} rows, us", f"{times[0]:.1f}", f"{times[1]:.1f}", _times(*times)
        for name, value in one.metrics.items():
            other = two.metrics[name]
            yield name, f"{value:.4f}", f"{other:.4f}", f"{other - value:+.4f}"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        document = asdict(self)
        for key in ("before", "after"):
            document[key]["latency_us"] = {str(rows): us for rows, us in document[key]["latency_us"].items()}
        return document | {"notes": list(self.notes)}

    def to_markdown(self) -> str:
        """The comparison as a Markdown table."""
        head = f"| {self.method} | {self.before.name} | {self.after.name} | gain |\n|---|---|---|---|\n"
        body = "".join(f"| {' | '.join(line)} |\n" for line in self.lines())
        return head + body + "".join(f"\n{note}\n" for note in self._notes())

    def to_html(self) -> str:
        """The comparison as an HTML page."""
        cells = [(self.method, self.before.name, self.after.name, "gain"), *self.lines()]
        rows = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
            for tag, line in zip(["th", *["td"] * len(cells)], cells, strict=False)
        ]
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        style = "body{font-family:sans-serif}td,th{padding:4px 12px;text-align:right}"
        return (
            f"<!doctype html><meta charset=utf-8><title>{html.escape(self.method)}</title>"
            f"<style>{style}</style><table>{''.join(rows)}</table>{notes}\n"
        )

    def _notes(self) -> list[str]:
        same = (
            []
            if self.agreement is None
            else [f"Both choose the same class for {self.agreement:.2%} of the rows."]
        )
        return [*same, *self.notes]


def compare_models(
    method: str,
    before: Subject,
    after: Subject,
    rows: Rows,
    *,
    truth: Array | None = None,
    notes: tuple[str, ...] = (),
) -> Comparison:
    """Measure two models on the same rows, in turns.

    Args:
        rows: at least one row; latency uses the first 64, repeated when there are fewer.
        truth: the true answer of each row: classes as whole numbers or texts of them, or numbers.
    """
    answers = {subject.name: subject.answer(rows) for subject in (before, after)}
    latencies = _latencies((before, after), rows)
    measured = [
        Measurement(
            name=subject.name,
            parameters=subject.parameters,
            bytes=len(subject.content),
            compressed_bytes=len(zlib.compress(subject.content)),
            latency_us=latencies[subject.name],
            metrics={} if truth is None else metric(answers[subject.name], truth),
        )
        for subject in (before, after)
    ]
    one, two = (_classes(answers[subject.name], truth) for subject in (before, after))
    same = None if one is None or two is None else float((one == two).mean())
    return Comparison(method, measured[0], measured[1], agreement=same, notes=notes)


def metric(answers: Array, truth: Array) -> dict[str, float]:
    """Accuracy for classes, root mean squared error for numbers."""
    chosen = _classes(answers, truth)
    truth = np.asarray(truth).reshape(len(truth), -1)
    if chosen is not None:
        return {"accuracy": float((chosen == truth[:, 0]).mean())}
    error = np.asarray(answers, dtype=np.float64).reshape(len(truth), -1) - truth
    return {"rmse": float(np.sqrt(np.mean(error**2)))}


def _classes(answers: Array, truth: Array | None) -> Array | None:
    """The chosen class of each row, None when the answers are no classes."""
    if answers.dtype.kind not in "fc":
        return answers.reshape(-1)
    if answers.ndim == 2 and answers.shape[1] > 1:
        return np.asarray(answers.argmax(axis=1))
    whole = truth is not None and np.asarray(truth).dtype.kind in "iub" and set(np.unique(truth)) <= {0, 1}
    inside = answers.min(initial=0) >= 0 and answers.max(initial=0) <= 1
    return (answers.reshape(-1) > 0.5).astype(int) if whole and inside else None


def _latencies(subjects: tuple[Subject, ...], rows: Rows) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {subject.name: {} for subject in subjects}
    for batch in BATCHES:
        some = take(rows, [index % count(rows) for index in range(batch)])
        calls = {subject.name: subject.call(some) for subject in subjects}
        for name, us in interleaved(calls).items():
            found[name][batch] = us
    return found


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of each call: medians of rounds would take in what else runs, so the best round counts.

    The calls take turns, so that what else the machine does hits all of them alike.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = int(
            np.clip(SECONDS / max(statistics.median(_time(call, 1) for _ in range(3)), 1e-7), 1, 2000)
        )
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], _time(call, repeats[name]) * 1e6)
    return best


def _time(call: Callable[[], object], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begun) / repeats


def _times(before: float, after: float) -> str:
    return f"x{before / after:.2f}" if after else ""


def _kilo(size: int) -> str:
    return f"{size / 1000:,.1f}"
