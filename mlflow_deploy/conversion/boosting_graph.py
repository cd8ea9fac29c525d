"""Boosted trees of any library in ONNX: one ensemble node, and categories as sets that are looked up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from mlflow_deploy.bundle import Feed
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.graph import IR_VERSION, OPSETS, GraphWriter
from mlflow_deploy.conversion.native import NUMERIC, NativeModel

INPUT = "input"
THRESHOLDS = 8
"""How many thresholds per column are tried as edge values."""

_NODES = (
    "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids",
    "nodes_falsenodeids", "nodes_missing_value_tracks_true", "target_treeids", "target_nodeids", "target_ids",
    "target_weights",
)  # fmt: skip


@dataclass
class Ensemble:
    """Trees as the ONNX operator wants them.

    Attributes:
        features: columns of the input.
        targets: numbers that come out for each row.
        base: what the trees are added to, one number per target.
        dtype: `float32` or `float64`: how the library compares and adds.
        mode: `BRANCH_LT` or `BRANCH_LEQ`: when a number goes to the left.
        truncates: numbers between -1 and 0 count as category 0, and not as none.
        sets: categories that go to the left by (feature, set) -> number of the new feature.
    """

    features: int
    targets: int
    base: Array
    dtype: str
    mode: str
    truncates: bool = False
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _NODES})
    sets: dict[tuple[int, tuple[int, ...]], int] = field(default_factory=dict)

    def split(
        self, tree: int, node: int, feature: int, value: float, children: tuple[int, int], missing_left: bool
    ) -> None:
        """Add a node that compares a feature with a number; `children` are left and right."""
        self._node(tree, node, feature, self.mode, value, *children, int(missing_left))

    def split_set(
        self,
        tree: int,
        node: int,
        feature: int,
        left: Sequence[int],
        children: tuple[int, int],
        missing: bool,
    ) -> None:
        """Add a node that sends the categories of a set to the left and all others to the right."""
        key = (feature, tuple(sorted(int(code) for code in left)))
        new = self.features + self.sets.setdefault(key, len(self.sets))
        self._node(tree, node, new, self.mode, 0.5, *children, int(missing))

    def leaf(self, tree: int, node: int, target: int, weight: float) -> None:
        """Add a leaf."""
        self._node(tree, node, 0, "LEAF", 0.0, 0, 0, 0)
        for name, value in zip(_NODES[8:], (tree, node, target, weight), strict=True):
            self.columns[name].append(value)

    def _node(self, *values: Any) -> None:
        for name, value in zip(_NODES[:8], values, strict=True):
            self.columns[name].append(value)

    def thresholds(self) -> dict[int, tuple[float, ...]]:
        """Some thresholds of each numeric feature, and categories of the others, in the order of the trees."""
        found: dict[int, list[float]] = {}
        rows = zip(
            *(self.columns[name] for name in ("nodes_featureids", "nodes_modes", "nodes_values")), strict=True
        )
        for feature, mode, value in rows:
            known = found.setdefault(feature, [])
            if mode != "LEAF" and feature < self.features and value not in known and len(known) < THRESHOLDS:
                known.append(float(value))
        for feature, codes in self.sets:
            known = found.setdefault(feature, [])
            known += [float(code) for code in codes if code not in known][: 2 * THRESHOLDS]
        return {feature: tuple(values) for feature, values in found.items() if values}


def write(graph: GraphWriter, ensemble: Ensemble, features: str) -> str:
    """Add the trees to a graph and return the name of their sums, [rows, targets]."""
    features = _memberships(graph, ensemble, features)
    columns = dict(ensemble.columns)
    kind = TensorProto.DOUBLE if ensemble.dtype == "float64" else TensorProto.FLOAT
    numbers = {
        "nodes_values_as_tensor": columns.pop("nodes_values"),
        "target_weights_as_tensor": columns.pop("target_weights"),
        "base_values_as_tensor": ensemble.base.tolist(),
    }
    attributes: dict[str, Any] = {
        name: helper.make_tensor(name, kind, [len(items)], items) for name, items in numbers.items()
    }
    attributes |= {**columns, "op_domain": "ai.onnx.ml", "op_version": 3, "n_targets": ensemble.targets}
    return graph.add("TreeEnsembleRegressor", [features], **attributes)


def _memberships(graph: GraphWriter, ensemble: Ensemble, features: str) -> str:
    """Append the new features: 0 for a category in the set, 1 for another, NaN for a missing one."""
    if not ensemble.sets:
        return features
    parts = [features]
    order: list[int] = []
    for feature in dict.fromkeys(feature for feature, _ in ensemble.sets):
        sets = [(codes, number) for (of, codes), number in ensemble.sets.items() if of == feature]
        # The last line of the table is for every other value.
        beyond = 1 + max((code for codes, _ in sets for code in codes), default=0)
        table = np.ones((beyond + 1, len(sets)), dtype=ensemble.dtype)
        for column, (codes, _) in enumerate(sets):
            table[list(codes), column] = 0.0
        value = graph.add("Gather", [features, graph.constant(np.array(feature))], axis=1)
        parts.append(_look_up(graph, value, table, ensemble))
        order += [number for _, number in sets]
    joined = graph.add("Concat", parts, axis=1)
    places = np.concatenate([np.arange(ensemble.features), ensemble.features + np.argsort(order)])
    return graph.add("Gather", [joined, graph.constant(places.astype(np.int64))], axis=1)


def _look_up(graph: GraphWriter, value: str, table: Array, ensemble: Ensemble) -> str:
    """The line of the table for each category; NaN where the category is missing."""
    dtype = ensemble.dtype
    limit = graph.constant(np.array(len(table) - 1, dtype=dtype))
    comparison, lowest = ("Greater", -1) if ensemble.truncates else ("GreaterOrEqual", 0)
    above = graph.add(comparison, [value, graph.constant(np.array(lowest, dtype=dtype))])
    below = graph.add("Less", [value, limit])
    known = graph.add("And", [above, below])
    code = graph.add("Cast", [graph.add("Where", [known, value, limit])], to=TensorProto.INT64)
    line = graph.add("Gather", [graph.constant(table), code], axis=0)
    missing = graph.add("Unsqueeze", [graph.add("IsNaN", [value]), graph.constant(np.array([1]))])
    return graph.add("Where", [missing, graph.constant(np.array(np.nan, dtype=dtype)), line])


def labels(graph: GraphWriter, index: str, classes: Array, output: str) -> None:
    """Add the class for each index as the output.

    Raises:
        NotImplementedError: the classes are fractions.
    """
    if classes.dtype.kind in "bui" or (classes.dtype.kind == "f" and (classes == classes.astype(int)).all()):
        classes = classes.astype(np.int64)
    elif classes.dtype.kind == "f":
        raise NotImplementedError("class labels that are fractions have no ONNX form")
    graph.add("Gather", [graph.constant(classes), index], output, axis=0)


# --- a graph of its own ------------------------------------------------------------------------------------


class Builder:
    """Collects nodes and constants of a whole graph, with the methods that `GraphWriter` uses."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[Any] = []
        self._names = 0

    def get_unique_variable_name(self, seed: str) -> str:
        """A name that no other value has."""
        self._names += 1
        return f"{seed}_{self._names}"

    def add_node(
        self, kind: str, inputs: list[str], outputs: list[str], op_domain: str = "", op_version: int = 0,
        **attributes: Any,
    ) -> None:  # fmt: skip
        """Add a node; the version of its operator is that of `OPSETS`."""
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=op_domain, **attributes))

    def add_initializer(self, name: str, kind: int, shape: list[int], content: Any) -> None:
        """Add a constant."""
        self._constants.append(helper.make_tensor(name, kind, shape, content))

    def model(self, columns: int, dtype: str, outputs: Sequence[str]) -> ModelProto:
        """The graph with one input of shape [rows, columns]."""
        kind = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
        given = helper.make_tensor_value_info(INPUT, kind, [None, columns])
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self._nodes, "model", [given], results, initializer=self._constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


# --- what the models of both libraries have in common --------------------------------------------------------


def refuse_inputs(native: NativeModel) -> str:
    """Why the inputs of a model have no form as one matrix of numbers, or the empty string."""
    if native.tensor is not None:
        if len(native.tensor.shape) != 2 or native.tensor.shape[1] < 1:
            return f"an input tensor of shape {list(native.tensor.shape)} has no fixed number of columns"
        return ""
    if not native.columns:
        return "the model has no signature with named columns; log it with input_example= or signature="
    for column in native.columns:
        if column.type not in (*NUMERIC, "boolean"):
            return (
                f"column {column.name!r} has type {column.type}, and MLflow loses the category codes that the "
                "model was trained with; log categories as whole numbers"
            )
    return ""


def matrix_feed(native: NativeModel, dtype: str) -> Feed:
    """All inputs as one matrix."""
    if native.tensor is not None:
        return Feed(name=INPUT, dtype=dtype, tensor="", shape=tuple(native.tensor.shape))
    return Feed(name=INPUT, dtype=dtype, columns=tuple(column.name for column in native.columns))


def by_column(
    native: NativeModel, thresholds: dict[int, tuple[float, ...]]
) -> dict[str | int, tuple[Any, ...]]:
    """Values by feature number as values by column."""
    names: list[Any] = [column.name for column in native.columns]
    return {
        (names[feature] if names else feature): values
        for feature, values in thresholds.items()
        if not names or feature < len(names)
    }


def widths(native: NativeModel) -> int:
    """How many columns the matrix has."""
    return native.tensor.shape[1] if native.tensor is not None else len(native.columns)


def probabilities_of_two(graph: GraphWriter, second: str, dtype: str) -> str:
    """[rows, 2] from the probability of the second class, [rows, 1]."""
    first = graph.add("Sub", [graph.constant(np.ones(1, dtype=dtype)), second])
    return graph.add("Concat", [first, second], axis=1)


def boosting_parts(parts: Iterator[Any]) -> set[str]:
    """Which boosting libraries estimators come from."""
    return {type(part).__module__.partition(".")[0] for part in parts} & {"xgboost", "lightgbm"}
