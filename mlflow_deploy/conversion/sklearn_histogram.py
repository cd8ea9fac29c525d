"""Histogram gradient boosting in ONNX: thresholds and leaves in 64 bits, categories as sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.helper import make_tensor
from skl2onnx.common.data_types import DoubleTensorType

from mlflow_deploy.conversion.graph import GraphWriter

Array = np.ndarray[Any, Any]

_LEFT, _LEAF = "BRANCH_LEQ", "LEAF"


@dataclass
class _Sets:
    """The sets of categories that splits ask for, one new 0/1 feature each.

    Attributes:
        first: number of the first new feature.
        columns: for each new feature its categorical feature and the codes that go left.
    """

    first: int
    columns: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def feature(self, feature: int, bits: Array) -> int:
        """Number of the new feature for `category of feature is in the set`."""
        return self.first + self.columns.setdefault((feature, bits.tobytes()), len(self.columns))

    def codes(self) -> Iterator[tuple[int, int, Array]]:
        """New feature, its categorical feature, and the set as 256 booleans."""
        for (feature, bits), offset in self.columns.items():
            words = np.frombuffer(bits, dtype="<u4")
            flags = (words[:, None] >> np.arange(32, dtype="<u4")) & 1
            yield offset, feature, flags.reshape(-1).astype(bool)


def convert(scope: Any, operator: Any, container: Any) -> None:
    """Write the graph of a HistGradientBoosting classifier or regressor."""
    graph = GraphWriter(scope, container)
    model = operator.raw_operator
    (given,) = operator.inputs
    inputs = given.onnx_name
    if not isinstance(given.type, DoubleTensorType):
        inputs = graph.add("Cast", [inputs], to=TensorProto.DOUBLE)
    features = _features(graph, model, inputs)
    sets = _Sets(first=int(model.n_features_in_))
    attributes = _trees(model, sets)
    features = _memberships(graph, model, features, sets)
    raw = scope.get_unique_variable_name("raw")
    container.add_node(
        "TreeEnsembleRegressor", [features], [raw], op_domain="ai.onnx.ml", op_version=3, **attributes
    )
    if hasattr(model, "classes_"):
        _classify(graph, model, raw, operator.outputs)
    else:
        link = type(model._loss.link).__name__
        if link not in ("IdentityLink", "LogLink"):
            raise NotImplementedError(f"loss {model.loss!r} has the link {link}, which has no ONNX form here")
        kind = "Exp" if link == "LogLink" else "Identity"
        container.add_node(kind, [raw], [operator.outputs[0].onnx_name])


def _trees(model: Any, sets: _Sets) -> dict[str, Any]:
    """Attributes of the tree ensemble; splits on categories go to the new features of `sets`."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "nodes_treeids",
            "nodes_nodeids",
            "nodes_featureids",
            "nodes_modes",
            "nodes_values",
            "nodes_truenodeids",
            "nodes_falsenodeids",
            "nodes_missing_value_tracks_true",
            "target_treeids",
            "target_nodeids",
            "target_ids",
            "target_weights",
        )
    }
    identifier = 0
    for stage in model._predictors:
        for target, predictor in enumerate(stage):
            _tree(columns, predictor, identifier, target, sets)
            identifier += 1
    nodes = np.asarray(columns.pop("nodes_values"), dtype=np.float64)
    weights = np.asarray(columns.pop("target_weights"), dtype=np.float64)
    base = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
    return {
        **columns,
        "n_targets": int(model.n_trees_per_iteration_),
        "nodes_values_as_tensor": _doubles("nodes", nodes),
        "target_weights_as_tensor": _doubles("weights", weights),
        "base_values_as_tensor": _doubles("base", base),
    }


def _doubles(name: str, values: Array) -> Any:
    return make_tensor(name, TensorProto.DOUBLE, [len(values)], values.tolist())


def _tree(columns: dict[str, list[Any]], predictor: Any, identifier: int, target: int, sets: _Sets) -> None:
    for number, node in enumerate(predictor.nodes):
        leaf = bool(node["is_leaf"])
        feature, value = int(node["feature_idx"]), float(node["num_threshold"])
        if not leaf and node["is_categorical"]:
            feature = sets.feature(feature, predictor.raw_left_cat_bitsets[node["bitset_idx"]])
            value = 0.5
        columns["nodes_treeids"].append(identifier)
        columns["nodes_nodeids"].append(number)
        columns["nodes_featureids"].append(0 if leaf else feature)
        columns["nodes_modes"].append(_LEAF if leaf else _LEFT)
        columns["nodes_values"].append(0.0 if leaf else value)
        columns["nodes_truenodeids"].append(0 if leaf else int(node["left"]))
        columns["nodes_falsenodeids"].append(0 if leaf else int(node["right"]))
        columns["nodes_missing_value_tracks_true"].append(0 if leaf else int(node["missing_go_to_left"]))
        if leaf:
            columns["target_treeids"].append(identifier)
            columns["target_nodeids"].append(number)
            columns["target_ids"].append(target)
            columns["target_weights"].append(float(node["value"]))


def _features(graph: GraphWriter, model: Any, inputs: str) -> str:
    """The columns in the order in which the trees number them: categorical ones first."""
    if model.is_categorical_ is None:
        return inputs
    mask = np.asarray(model.is_categorical_, dtype=bool)
    order = np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]).astype(np.int64)
    return graph.add("Gather", [inputs, graph.constant(order)], axis=1)


def _memberships(graph: GraphWriter, model: Any, features: str, sets: _Sets) -> str:
    """Append the new features: 0 for a category in the set, 1 for another, NaN for unknown or missing."""
    if not sets.columns:
        return features
    encoder = model._preprocessor.named_transformers_["encoder"]
    parts: list[str] = [features]
    for offset, feature, flags in sets.codes():
        if offset != len(parts) - 1:
            raise AssertionError("the sets are numbered in order")
        categories = np.asarray(encoder.categories_[feature], dtype=np.float64)
        codes = np.flatnonzero(~np.isnan(categories))
        column = graph.add("Gather", [features, graph.constant(np.array([feature]))], axis=1)
        equal = graph.add("Equal", [column, graph.constant(categories[codes][None, :])])
        one_hot = graph.add("Cast", [equal], to=TensorProto.DOUBLE)
        outside = np.where(flags[codes], 0.0, 1.0)[:, None]
        value = graph.add("MatMul", [one_hot, graph.constant(outside)])
        known = graph.add("MatMul", [one_hot, graph.constant(np.ones_like(outside))])
        found = graph.add("Cast", [known], to=TensorProto.BOOL)
        parts.append(graph.add("Where", [found, value, graph.constant(np.array([[np.nan]]))]))
    return graph.add("Concat", parts, axis=1)


def _classify(graph: GraphWriter, model: Any, raw: str, outputs: Any) -> None:
    """Probabilities from raw scores, and the class with the highest one, the first of equals."""
    if model.n_trees_per_iteration_ == 1:
        second = graph.add("Sigmoid", [raw])
        first = graph.add("Sub", [graph.constant(np.ones(1, dtype=np.float32)), second])
        probability = graph.add("Concat", [first, second], axis=1)
    else:
        probability = graph.add("Softmax", [raw], axis=1)
    graph.add("Identity", [probability], outputs[1].onnx_name)
    best = graph.add("ArgMax", [probability], axis=1, keepdims=0)
    classes = np.asarray(model.classes_)
    if classes.dtype.kind in "bui":
        classes = classes.astype(np.int64)
    elif classes.dtype.kind == "f":
        if not np.array_equal(classes, classes.astype(np.int64)):
            raise NotImplementedError("class labels that are fractions have no ONNX form")
        classes = classes.astype(np.int64)
    graph.add("Gather", [graph.constant(classes), best], outputs[0].onnx_name, axis=0)
