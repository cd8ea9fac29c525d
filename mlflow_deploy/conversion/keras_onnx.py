"""Keras and TensorFlow to ONNX, from the frozen graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import tf2onnx
from tf2onnx.handler import tf_op

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, tf_graph
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.graph import finish
from mlflow_deploy.conversion.indices import has_whole_numbers, refuse_negative
from mlflow_deploy.conversion.limits import with_finite
from mlflow_deploy.conversion.native import NativeModel

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR, Capability.TENSORS})

FILE = "model.onnx"

OPSET = 18
"""The highest that tf2onnx writes."""


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return tf_graph.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The graph; of a model of whole numbers next the one that refuses negative indices."""
    yield from with_finite("float32", partial(_build, native, answer))
    if has_whole_numbers(native):
        yield from with_finite("float32, indices checked", partial(_build, native, answer, guarded=True))


def _build(native: NativeModel, answer: Answer, folder: Path, *, guarded: bool = False) -> Servable:
    frozen = tf_graph.freeze(native, answer)
    _add_missing_operators()
    with tf_graph.quiet():
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph,
            input_names=[f"{item.name}:0" for item in frozen.inputs],
            output_names=[f"{name}:0" for name in frozen.outputs],
            opset=OPSET,
        )
    _plain_names(model)
    _refuse_unknown(model)
    if guarded:
        refuse_negative(model)
    (folder / FILE).write_bytes(finish(model, frozen.outputs))
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{FILE}",
        feeds=networks.feeds(native, frozen.inputs),
        outputs=networks.outputs(answer, frozen.outputs),
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=("numpy", "onnxruntime>=1.23"),
    )


def _plain_names(model: Any) -> None:
    """Names of inputs and outputs without TensorFlow's `:0`."""
    graph = model.graph
    names = {value.name: value.name.partition(":")[0] for value in [*graph.input, *graph.output]}
    for node in graph.node:
        for values in (node.input, node.output):
            for position, value in enumerate(values):
                values[position] = names.get(value, value)
    for value in [*graph.input, *graph.output]:
        value.name = names[value.name]


def _refuse_unknown(model: Any) -> None:
    """Raise for operators that tf2onnx only copies: it logs an error and writes a graph that nothing loads."""
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    unknown = sorted({node.op_type for node in model.graph.node if not node.domain} - known)
    if unknown:
        raise NotImplementedError(
            f"tf2onnx has no ONNX operator for TensorFlow's {', '.join(unknown)}; use format=savedmodel"
        )


@cache
def _add_missing_operators() -> None:
    """Teach tf2onnx what it lacks: Erfc, which exact gelu is made of."""

    @tf_op("Erfc")
    class Erfc:
        """1 - erf(x)."""

        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            """Replace the node."""
            dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
            given, wanted = node.input[0], node.output[0]
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", [given], dtypes=[dtype], shapes=[shape])
            one = ctx.make_const(f"{node.name}_one", _one(dtype))
            ctx.make_node(
                "Sub", [one.output[0], erf.output[0]], outputs=[wanted], dtypes=[dtype], shapes=[shape]
            )


def _one(dtype: int) -> Any:
    import numpy as np
    import onnx

    return np.array(1, dtype=onnx.helper.tensor_dtype_to_np_dtype(dtype))
