"""Servables in lower precision: what is tried for each form, calibrated on which rows, and which is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mlflow_deploy.bundle import Servable
from mlflow_deploy.config import Precision
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate
from mlflow_deploy.conversion.comparison import BATCHES, interleaved
from mlflow_deploy.conversion.evidence import Evidence
from mlflow_deploy.conversion.feeds import Array, build_feeds
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.rows import count, take
from mlflow_deploy.conversion.runners import open_graph
from mlflow_deploy.conversion.tensor_edges import OUTSIDE_RANGE
from mlflow_deploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows

PRECISIONS: tuple[str, ...] = get_args(Precision)

CALIBRATION_ROWS = 512
"""Rows at most from which the ranges of int8 are measured; more change them little and take longer."""

_BATCH = 32

CLEARLY = 1.05
"""How many times faster a precision must be than a higher one to be preferred by `auto`."""

_BEYOND_RANGE = ("outliers", "values known to the model", OUTSIDE_RANGE)
"""Data sets with numbers beyond those that int8 is calibrated for: it saturates there, which is reported."""

_CALIBRATION = ("validation rows", "input example", "rows invented from the signature")
_MIXED = "large batch"


@dataclass(frozen=True)
class Lowering:
    """A servable in 32-bit floats that is to be made smaller.

    Attributes:
        native: the model that it was made from.
        servable: its description.
        content: the folder of its files.
        feeds: inputs of its graph from calibration rows, in batches.
        answer: an answer of the model, whose form and types are kept.
    """

    native: NativeModel
    servable: Servable
    content: Path
    feeds: Sequence[Mapping[str, Array]]
    answer: Answer


def check_precision(precision: str, format: str) -> None:
    """Refuse a precision that does not exist, and one for the native model, which has its own.

    Raises:
        ConfigError: it cannot be had.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"There is no precision {precision!r}",
            why=nearest(precision, PRECISIONS),
            hint=f"Known precisions: {', '.join(PRECISIONS)}",
        )
    if format == "pyfunc" and precision in ("int8", "fp16"):
        raise ConfigError(
            f"precision={precision} and format=pyfunc contradict each other",
            why="pyfunc runs the native model as it is",
            hint="Leave one of them out, or use format=onnx",
        )


def wanted_precisions(precision: str) -> tuple[str, ...]:
    """The lower precisions that a setting asks for, the one that is expected to be fastest first."""
    return {"fp32": (), "auto": ("int8", "fp16")}.get(precision, (precision,))


def refuse(lowering: Lowering, precision: str) -> str:
    """Why a servable cannot have a precision, or the empty string."""
    kind = lowering.servable.kind
    if kind == "onnx":
        from mlflow_deploy.conversion import precision_onnx

        return precision_onnx.refuse(_graph_file(lowering), precision)
    if kind == "tflite":
        return ""
    return f"the form {kind} has no {precision}; use format=onnx" + (
        " or tflite" if kind == "savedmodel" else ""
    )


def candidates(lowering: Lowering, precision: str) -> Iterator[Candidate]:
    """Servables of one lower precision, the one that is expected to be fastest first."""
    if lowering.servable.kind == "tflite":
        from mlflow_deploy.conversion import precision_tflite

        source = precision_tflite.TfliteSource(
            lowering.native, lowering.servable, _graph_file(lowering), lowering.feeds, lowering.answer
        )
        yield from precision_tflite.candidates(source, precision)
        return
    from mlflow_deploy.conversion import precision_onnx

    graph = precision_onnx.OnnxSource(lowering.servable, _graph_file(lowering), lowering.feeds)
    yield from precision_onnx.candidates(graph, precision)


def _graph_file(lowering: Lowering) -> Path:
    return lowering.content / Path(lowering.servable.path).name


# --- rows --------------------------------------------------------------------------------------------------


def calibration(
    evidence: Evidence, servable: Servable, batch: int | None
) -> tuple[list[dict[str, Array]], str]:
    """Inputs of the graph to measure ranges on, and what to say about the rows.

    Args:
        batch: rows of each call when the graph takes no other number of them.
    """
    by_name = {item.dataset.name: item.dataset.rows for item in evidence.references if len(item.answers)}
    name = next((name for name in _CALIBRATION if name in by_name), "")
    if not name:
        return [], "no rows to calibrate int8 on"
    note = ""
    if name != "validation rows":
        note = (
            f"int8 was calibrated on the {name}, {count(by_name[name])} rows, and mixtures of them, because "
            "the model's run has no validation rows; log them for ranges that real requests keep within"
        )
        # Mixtures lie between rows of the example, which alone are few.
        name = _MIXED if _MIXED in by_name else name
    rows = by_name[name]
    size = batch or _BATCH
    last = min(count(rows), CALIBRATION_ROWS)
    starts = range(0, last - size + 1, size) if last >= size else [0]
    parts = [take(rows, range(start, min(start + size, count(rows)))) for start in starts]
    return [build_feeds(servable.feeds, part) for part in parts], note


def gating(evidence: Evidence, precision: str) -> Evidence:
    """The evidence with data sets beyond the calibrated range as information only."""
    if precision != "int8":
        return evidence
    references = [
        replace(item, dataset=replace(item.dataset, gating=False))
        if item.dataset.name in _BEYOND_RANGE
        else item
        for item in evidence.references
    ]
    return replace(evidence, references=references, behind=())


# --- choice ------------------------------------------------------------------------------------------------


def fastest(
    places: Sequence[tuple[Servable, Path]], labels: Sequence[str], rows: Rows, batch: int | None
) -> tuple[int, str]:
    """Which of some servables of one form answers fastest on this machine, and what was measured.

    Args:
        places: servables with the folders of their files, the one to be preferred in doubt first.
        labels: what the text calls them.
        rows: rows that all of them answer.
        batch: rows of each call when the graphs take no other number of them.

    Returns:
        The position, and the times of all.
    """
    times: list[list[float]] = [[] for _ in places]
    graphs = [open_graph(servable, content) for servable, content in places]
    for size in (batch,) if batch else BATCHES:
        some = take(rows, [index % count(rows) for index in range(size)])
        feeds = build_feeds(places[0][0].feeds, some)
        calls = {str(index): partial(graph, feeds) for index, graph in enumerate(graphs)}
        for key, us in interleaved(calls).items():
            times[int(key)].append(us)
    best = 0
    for index in range(1, len(places)):
        gains = [one / two for one, two in zip(times[best], times[index], strict=True)]
        if _mean(gains) >= CLEARLY:
            best = index
    shown = [
        f"{label} {' and '.join(f'{us:.0f}' for us in spent)} us"
        for label, spent in zip(labels, times, strict=True)
    ]
    return best, f"at {' and '.join(map(str, (batch,) if batch else BATCHES))} rows: {', '.join(shown)}"


def _mean(gains: Sequence[float]) -> float:
    product = 1.0
    for gain in gains:
        product *= gain
    return float(product ** (1 / len(gains)))
