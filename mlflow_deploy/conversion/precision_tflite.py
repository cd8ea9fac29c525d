"""TFLite graphs in lower precision, made by TensorFlow's converter from the same frozen graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import keras_tflite, tf_graph
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.native import NativeModel

_SAMPLES = 128
"""Rows to calibrate on, given one by one, which graphs of every batch size take."""


@dataclass(frozen=True)
class TfliteSource:
    """A converted graph, what it was made from, and the rows to calibrate on.

    Attributes:
        native: the model.
        servable: the description of the 32-bit servable.
        path: its file.
        feeds: inputs of the graph, in batches; at least one batch for full int8.
        answer: an answer of the model.
    """

    native: NativeModel
    servable: Servable
    path: Path
    feeds: Sequence[Mapping[str, Array]]
    answer: Answer


def candidates(source: TfliteSource, precision: str) -> Iterator[Candidate]:
    """Graphs of one precision, the one that is expected to be fastest first.

    Args:
        precision: int8 or fp16.
    """
    if precision == "fp16":
        yield _candidate(source, "fp16", "fp16", _half)
        return
    if source.feeds:
        yield _candidate(source, "int8 full", "int8", partial(_full, samples=list(_samples(source.feeds))))
    yield _candidate(source, "int8 dynamic", "int8", _dynamic)


def _candidate(source: TfliteSource, label: str, precision: str, lower: Callable[[Any], None]) -> Candidate:
    def build(folder: Path) -> Servable:
        frozen = tf_graph.freeze(source.native, source.answer, rows=_rows(source.path))
        (folder / keras_tflite.FILE).write_bytes(keras_tflite.convert(frozen, lower))
        return structs.replace(source.servable, path=f"{SERVABLE}/{keras_tflite.FILE}", precision=precision)

    return Candidate(label=label, build=build)


def _dynamic(converter: Any) -> None:
    """Weights in 8 bits; the scale of each row's numbers is computed when it comes."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _full(converter: Any, samples: Sequence[Mapping[str, Array]]) -> None:
    """Weights and inner numbers in 8 bits; inputs and answers stay in 32-bit floats."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (dict(sample) for sample in samples)


def _half(converter: Any) -> None:
    """Weights in 16-bit floats, which the runtime turns into 32 bits when it loads them."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _samples(feeds: Sequence[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    left = _SAMPLES
    for batch in feeds:
        for row in range(len(next(iter(batch.values())))):
            if not left:
                return
            left -= 1
            yield {name: array[row : row + 1] for name, array in batch.items()}


def _rows(path: Path) -> int | None:
    """The number of rows that the graph is fixed to, None when it takes any."""
    details = Interpreter(model_path=str(path), num_threads=1).get_input_details()
    sizes = {int(item["shape_signature"][0]) for item in details if len(item["shape_signature"])}
    return None if not sizes or -1 in sizes else sizes.pop()
