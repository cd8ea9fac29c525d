"""Small real bundles: an ONNX graph that adds a constant to one double column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy.bundle import Bundle, Feed, ModelSource, Output, Servable, write_bundle


def adder_bundle(store: Path, work: Path, constant: float) -> Bundle:
    """A bundle that answers each row's column `x` plus `constant`."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        initializer=[numpy_helper.from_array(np.array([constant], dtype=np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return _write(store, work, onnx.checker.check_model(model) or model.SerializeToString(), constant)


def broken_bundle(store: Path, work: Path) -> Bundle:
    """A bundle whose digests are right and whose graph is not ONNX at all."""
    return _write(store, work, b"not a graph", 0.0)


def _write(store: Path, work: Path, graph: bytes, constant: float) -> Bundle:
    content = work / f"content-{constant}-{len(graph)}"
    content.mkdir(parents=True)
    (content / "model.onnx").write_bytes(graph)
    return write_bundle(
        store,
        model=ModelSource(uri=f"file:///adder-{constant}"),
        servable=Servable(
            kind="onnx",
            path="servable/model.onnx",
            feeds=(Feed(name="x", dtype="float32", columns=("x",), shape=(-1, 1)),),
            outputs=(Output(name="y", dtype="float32", squeeze=True),),
        ),
        content=content,
        documents={
            "signature.json": {
                "inputs": [{"type": "double", "name": "x", "required": True}],
                "outputs": [
                    {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1]}},
                ],
                "params": None,
            },
            "example.json": {
                "request": {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}},
                "predictions": [1.0 + constant],
            },
        },
    )
