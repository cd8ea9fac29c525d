"""Whole numbers that choose rows of a table, such as tokens: refused where PyTorch refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

    from mlflow_deploy.conversion.native import NativeModel

_SIGN = 2**63 - 1
"""All bits of a 64-bit number but its sign: what it leaves of a negative number is beyond every table."""


def has_whole_numbers(native: NativeModel) -> bool:
    """Whether any tensor of a model holds whole numbers."""
    return any(tensor.dtype in ("int32", "int64") for tensor in native.tensors)


def refuse_negative(model: ModelProto) -> None:
    """Let a graph raise on negative indices into its tables, which ONNX counts from the end.

    The model is changed in place. Only tables of fixed 32-bit numbers are guarded: embeddings.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    fixed = {item.name for item in graph.initializer}
    tables = {
        item.name for item in graph.initializer if item.data_type == TensorProto.FLOAT and len(item.dims) == 2
    }
    mask = "index_sign_mask"
    nodes = []
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] not in fixed:
            wide, plain = f"{node.output[0]}_index", f"{node.output[0]}_unsigned"
            nodes.append(helper.make_node("Cast", [node.input[1]], [wide], to=TensorProto.INT64))
            nodes.append(helper.make_node("BitwiseAnd", [wide, mask], [plain]))
            node.input[1] = plain
        nodes.append(node)
    if len(nodes) == len(graph.node):
        return
    graph.initializer.append(numpy_helper.from_array(np.array(_SIGN, dtype=np.int64), mask))
    del graph.node[:]
    graph.node.extend(nodes)
