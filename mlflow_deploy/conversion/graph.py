"""ONNX graphs made small and reproducible: same model in, same bytes out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPSETS = {"": 21, "ai.onnx.ml": 3}
"""Operator sets that converters aim at: every supported ONNX Runtime loads them."""

IR_VERSION = 10
"""File format version; onnx writes newer ones by default than ONNX Runtime reads."""


MISSING_TEXT = "\ue000missing"
"""What a missing text is fed as. A character of the private use area keeps it apart from every category."""


class GraphWriter:
    """Adds nodes and constants with fresh names to a graph that skl2onnx builds."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output; without `output` a fresh one is made."""
        output = output or self._scope.get_unique_variable_name(kind.lower())
        self._container.add_node(kind, list(inputs), [output], **attributes)
        return output

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        """Add a constant of 32-bit or 64-bit floats, 64-bit integers or texts and return its name."""
        from onnx import TensorProto

        kinds = {"f4": TensorProto.FLOAT, "f8": TensorProto.DOUBLE, "i8": TensorProto.INT64}
        kind = kinds.get(values.dtype.str[1:], TensorProto.STRING)
        flat = values.ravel().tolist()
        items = [str(value).encode() for value in flat] if kind == TensorProto.STRING else flat
        name: str = self._scope.get_unique_variable_name("constant")
        self._container.add_initializer(name, kind, list(values.shape), items)
        return name


def finish(model: ModelProto, outputs: Sequence[str]) -> bytes:
    """Keep only what `outputs` need, drop everything that varies from run to run, and serialise.

    The model is changed in place.

    Raises:
        ValueError: the graph needs an operator set beyond those ONNX Runtime loads.
    """
    _keep(model, outputs)
    model.ir_version = IR_VERSION
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version"):
        model.ClearField(field)
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    _forget(graph, {})
    for output in graph.output:
        output.ClearField("type")
    _sort_opsets(model)
    _rename(model)
    return bytes(model.SerializeToString(deterministic=True))


def _keep(model: ModelProto, outputs: Sequence[str]) -> None:
    """Remove outputs that are not wanted, and then nodes, initializers and inputs that nothing needs."""
    graph = model.graph
    kept = [output for output in graph.output if output.name in outputs]
    kept.sort(key=lambda output: list(outputs).index(output.name))
    del graph.output[:]
    graph.output.extend(kept)
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            needed.update(_captured(node))
            nodes.append(node)
    nodes.reverse()
    initializers = [item for item in graph.initializer if item.name in needed]
    inputs = [item for item in graph.input if item.name in needed]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _captured(node: NodeProto) -> set[str]:
    """Names that the subgraphs of a node may take from the graph around them."""
    names: set[str] = set()
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names.update(inner.input)
            names.update(_captured(inner))
        names.update(value.name for value in attribute.g.output)
    return names


def _sort_opsets(model: ModelProto) -> None:
    used = {node.domain for node in model.graph.node} | {""}
    versions = {item.domain: item.version for item in model.opset_import if item.domain in used}
    del model.opset_import[:]
    for domain in sorted(versions):
        limit = OPSETS.get(domain, 1)
        if versions[domain] > limit:
            raise ValueError(f"the graph needs operators {domain or 'ai.onnx'} {versions[domain]} > {limit}")
        model.opset_import.add(domain=domain, version=versions[domain])


def _rename(model: ModelProto) -> None:
    """Number inner names in the order of use: converters count them in the order of sets, or in a process.

    Graph inputs and outputs keep their names, since requests are mapped to them.
    """
    names = {value.name: value.name for value in [*model.graph.input, *model.graph.output]} | {"": ""}
    _rename_graph(
        model.graph, names, (f"v{index}" for index in itertools.count() if f"v{index}" not in names)
    )


def _rename_graph(graph: GraphProto, names: dict[str, str], fresh: Iterator[str]) -> None:
    """Rename a graph and those inside its nodes, which see the names around them."""

    def renamed(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        for values in (node.input, node.output):
            for position, value in enumerate(values):
                values[position] = renamed(value)
        for inner in _inside(node):
            inner.name, inner.doc_string = "inner", ""
            for value in inner.input:
                value.name = renamed(value.name)
            _rename_graph(inner, names, fresh)
            for value in inner.output:
                value.name = renamed(value.name)
    for item in graph.initializer:
        item.name = names.get(item.name, item.name)
        item.doc_string = ""
    ordered = sorted(graph.initializer, key=lambda item: (len(item.name), item.name))
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _inside(node: NodeProto) -> list[GraphProto]:
    """The graphs inside a node: branches and bodies of loops."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def _forget(graph: GraphProto, sizes: dict[str, str]) -> None:
    """Drop what describes the machine and the code that a graph comes from, in graphs inside it too.

    Args:
        sizes: new names of free dimensions by their old ones, which converters count over a process.
    """
    # Types of inner values are inferred when the graph is loaded. Converters declare some of them wrongly,
    # above all doubles, and a wrong declaration is refused while none is accepted.
    del graph.value_info[:]
    del graph.metadata_props[:]
    for value in [*graph.input, *graph.output]:
        del value.metadata_props[:]
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = sizes.setdefault(size.dim_param, f"d{len(sizes)}")
    for item in graph.initializer:
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for inner in _inside(node):
            _forget(inner, sizes)
