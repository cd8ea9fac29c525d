"""Graphs are cut to what is wanted, cleaned of noise, and written the same each time."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info

from mlflow_deploy.conversion.graph import IR_VERSION, finish


def graph(names: tuple[str, str], opsets: tuple[tuple[str, int], ...]) -> onnx.ModelProto:
    """x -> (x + 1, x * 2), with inner names and operator sets as given."""
    first, second = names
    nodes = [
        make_node("Add", ["x", first], [f"{first}_sum"], doc_string="noise"),
        make_node("Identity", [f"{first}_sum"], ["plus"]),
        make_node("Mul", ["x", second], ["times"]),
    ]
    values = [
        make_tensor(first, TensorProto.FLOAT, [1], [1.0]),
        make_tensor(second, TensorProto.FLOAT, [1], [2.0]),
    ]
    info = [make_tensor_value_info(name, TensorProto.DOUBLE, [None]) for name in ("plus", "times")]
    body = make_graph(nodes, first, [make_tensor_value_info("x", TensorProto.FLOAT, [None])], info, values)
    imports = [make_opsetid(domain, version) for domain, version in opsets]
    return make_model(body, producer_name=second, opset_imports=imports, ir_version=13)


def test_names_and_order_of_operator_sets_leave_no_trace() -> None:
    one = finish(graph(("a", "b"), (("", 21), ("ai.onnx.ml", 3))), ["plus"])
    two = finish(graph(("k", "c"), (("ai.onnx.ml", 3), ("", 21))), ["plus"])
    assert one == two


def test_only_what_is_wanted_is_kept_and_runs_despite_wrong_declarations() -> None:
    encoded = finish(graph(("a", "b"), (("", 21),)), ["plus"])

    model = onnx.load_from_string(encoded)
    assert [node.op_type for node in model.graph.node] == ["Add", "Identity"]
    assert len(model.graph.initializer) == 1
    assert (model.ir_version, model.producer_name) == (IR_VERSION, "")
    session = onnxruntime.InferenceSession(encoded)
    (answer,) = session.run(None, {"x": np.float32([1, 2])})
    assert answer.tolist() == [2.0, 3.0]


def test_an_operator_set_beyond_the_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="needs operators"):
        finish(graph(("a", "b"), (("", 28),)), ["plus"])
