"""Keras and TensorFlow to TFLite: any number of rows where TFLite can, else one row at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, tf_graph
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.limits import with_finite
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.runners import Graph

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR, Capability.TENSORS})

FILE = "model.tflite"


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return tf_graph.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """Any number of rows first; TFLite's loops, which recurrent layers are, need a fixed number."""
    made: list[Candidate] = []
    for candidate in with_finite("float32", partial(_build, native, answer, None)):
        made.append(candidate)
        yield candidate
    # A second one means that the first could be built.
    if len(made) == 1 and native.rows_at_once is None:
        yield from with_finite("float32, row by row", partial(_build, native, answer, 1))


def _build(native: NativeModel, answer: Answer, rows: int | None, folder: Path) -> Servable:
    frozen = tf_graph.freeze(native, answer, rows=rows)
    (folder / FILE).write_bytes(convert(frozen))
    return Servable(
        kind="tflite",
        path=f"{SERVABLE}/{FILE}",
        feeds=networks.feeds(native, frozen.inputs),
        outputs=networks.outputs(answer, frozen.outputs),
        answer=answer.form,
        batchable=rows is None and networks.independent(native),
        requirements=("numpy", "ai-edge-litert>=2.1"),
    )


def convert(frozen: tf_graph.Frozen, lower: Callable[[Any], None] | None = None) -> bytes:
    """The graph as a TFLite file.

    Args:
        lower: sets what the converter does to the numbers; None keeps 32-bit floats.

    Raises:
        NotImplementedError: TFLite lacks an operator; the text names it and the way out.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder, tf_graph.quiet():
        (Path(folder) / "saved_model.pb").write_bytes(tf_graph.saved_model(frozen))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # The runtime that serves has no TensorFlow operators beyond TFLite's own.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if lower is not None:
            lower(converter)
        try:
            return bytes(converter.convert())
        except Exception as error:
            raise NotImplementedError(_cause(str(error))) from error


def _cause(text: str) -> str:
    if "TensorList" in text:
        return (
            "TFLite's loops need a fixed number of rows; build recurrent layers with unroll=True to lift that"
        )
    import re

    lacking = sorted(set(re.findall(r"'(tf\.\w+)' op is neither a custom op nor a flex op", text)))
    if lacking:
        return f"TFLite has no operator for {', '.join(lacking)}; use format=savedmodel or format=onnx"
    return f"the TFLite converter says: {text.strip().splitlines()[0][:200]}"


def open_graph(servable: Servable, content: Path) -> Graph:
    """The graph, to be compared with the native model."""
    interpreter = Interpreter(model_path=str(content / Path(servable.path).name), num_threads=1)
    runner = interpreter.get_signature_runner(tf_graph.SIGNATURE)
    names = [output.name for output in servable.outputs]
    details = runner.get_input_details()
    single = any(
        len(item["shape_signature"]) and item["shape_signature"][0] == 1 for item in details.values()
    )
    single = single and any(feed.shape[:1] == (-1,) for feed in servable.feeds)

    def once(feeds: Mapping[str, Array]) -> list[Array]:
        found = runner(**{name: feeds[name] for name in details})
        return [np.array(found[name]) for name in names]

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        if not single:
            return once(feeds)
        count = len(next(iter(feeds.values())))
        parts = [once({name: array[row : row + 1] for name, array in feeds.items()}) for row in range(count)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    return run
