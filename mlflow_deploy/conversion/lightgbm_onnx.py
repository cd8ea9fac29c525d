"""LightGBM to ONNX: native boosters and scikit-learn wrappers, read from the model's own dump."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from onnx import TensorProto

from mlflow_deploy.bundle import SERVABLE, Output, Servable
from mlflow_deploy.conversion import boosting_graph as boosting
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.graph import GraphWriter, finish
from mlflow_deploy.conversion.native import NativeModel

CAPABILITIES = frozenset({Capability.TENSOR})

FILE = "model.onnx"

_F8 = "float64"
_ZERO = float(np.float32(1e-35))
"""LightGBM takes numbers this close to zero for zero; its constant has 32 bits."""

_EXP = ("poisson", "gamma", "tweedie")
_PLAIN = (
    "regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg",
)  # fmt: skip
_OBJECTIVES = (*_EXP, *_PLAIN, "binary", "multiclass", "multiclassova", "cross_entropy")


def read(model: Any) -> dict[str, Any]:
    """The dump of a native or wrapped model, cut to the trees with which it answers."""
    booster = model if isinstance(model, lightgbm.Booster) else model.booster_
    dump: dict[str, Any] = booster.dump_model()
    return dump


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return boosting.refuse_inputs(native) or refuse_model(native.raw())


def refuse_model(model: Any) -> str:
    """Why a booster cannot be converted, or the empty string."""
    dump = read(model)
    name, settings = _objective(dump)
    if name not in _OBJECTIVES:
        return f"the objective {name or 'of your own'!r} has no ONNX form"
    if "sqrt" in settings and name not in _PLAIN:
        return f"the objective {dump['objective']!r} has no ONNX form"
    if any(_has_coefficients(tree["tree_structure"]) for tree in dump["tree_info"]):
        return "trees with linear models in their leaves (linear_tree=True) have no ONNX form"
    kinds: dict[int, set[str]] = {}
    for tree in dump["tree_info"]:
        for node in _splits(tree["tree_structure"]):
            if node["decision_type"] == "<=":
                kinds.setdefault(node["split_feature"], set()).add(node["missing_type"])
    if any(len(found) > 1 for found in kinds.values()):
        return "it treats missing values of one column in two ways, as merged models do"
    return ""


def hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
    """Thresholds and categories of the trees."""
    return boosting.by_column(native, ensemble(read(native.raw())).thresholds())


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The one candidate: LightGBM itself compares and adds in 64-bit floats."""
    array = answer.array
    dtype = "str" if array.dtype.kind in "OUS" else array.dtype.name
    output = Output(name="answer", dtype=dtype, squeeze=array.ndim == 1)
    probe = None
    if native.probabilities() is not None:
        probe = partial(_build, native, "predict_proba", Output(name="answer", dtype=_F8))
    yield Candidate(label=_F8, build=partial(_build, native, native.predict_fn, output), probe=probe)


def _build(native: NativeModel, method: str, output: Output, folder: Path) -> Servable:
    builder = boosting.Builder()
    graph = GraphWriter(builder, builder)
    write_answer(graph, native.raw(), boosting.INPUT, method, output.name)
    model = builder.model(boosting.widths(native), _F8, [output.name])
    (folder / FILE).write_bytes(finish(model, [output.name]))
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{FILE}",
        feeds=(boosting.matrix_feed(native, _F8),),
        outputs=(output,),
        requirements=("numpy", "onnxruntime>=1.23"),
    )


# --- the dump ----------------------------------------------------------------------------------------------


def _objective(dump: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Name and settings of `binary sigmoid:1`; both empty for an objective of the user's own."""
    name, *settings = str(dump.get("objective", "")).split(" ")
    return name, {key: value for key, _, value in (item.partition(":") for item in settings)}


def _splits(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    stack = [node]
    while stack:
        item = stack.pop()
        if "split_feature" in item:
            yield item
            stack += [item["left_child"], item["right_child"]]


def _has_coefficients(root: Mapping[str, Any]) -> bool:
    """Whether a leaf holds a linear model."""
    leaves = [child for node in _splits(root) for child in (node["left_child"], node["right_child"])]
    return any("leaf_coeff" in leaf for leaf in (root, *leaves))


def ensemble(dump: Mapping[str, Any]) -> boosting.Ensemble:
    """The trees of a booster; missing values as `_prepared` hands them over."""
    targets = int(dump["num_tree_per_iteration"])
    rounds = len(dump["tree_info"]) // targets
    share = 1.0 / rounds if dump.get("average_output") and rounds else 1.0
    features = int(dump["max_feature_idx"]) + 1
    found = boosting.Ensemble(features, targets, np.zeros(targets), _F8, "BRANCH_LEQ", truncates=True)
    for number, tree in enumerate(dump["tree_info"]):
        _tree(found, number, tree["tree_structure"], number % targets, share)
    return found


def _tree(found: boosting.Ensemble, number: int, root: Mapping[str, Any], target: int, share: float) -> None:
    stack: list[tuple[int, Mapping[str, Any]]] = [(0, root)]
    used = 1
    while stack:
        place, node = stack.pop()
        if "split_feature" not in node:
            found.leaf(number, place, target, float(node["leaf_value"]) * share)
            continue
        children = (used, used + 1)
        used += 2
        stack += [(children[1], node["right_child"]), (children[0], node["left_child"])]
        feature = int(node["split_feature"])
        if node["decision_type"] == "==":
            codes = [int(code) for code in str(node["threshold"]).split("||")]
            found.split_set(number, place, feature, codes, children, False)
        else:
            found.split(
                number, place, feature, float(node["threshold"]), children, bool(node["default_left"])
            )


# --- the graph ---------------------------------------------------------------------------------------------


def write_answer(graph: GraphWriter, model: Any, inputs: str, method: str, output: str) -> None:
    """Add a whole model: from the matrix `inputs` of 64-bit floats to the answer of a method."""
    dump = read(model)
    raw = boosting.write(graph, ensemble(dump), _prepared(graph, dump, inputs))
    name, settings = _objective(dump)
    if isinstance(model, lightgbm.LGBMClassifier):
        chances = _probabilities(graph, name, settings, raw)
        if name in ("binary", "cross_entropy"):
            chances = boosting.probabilities_of_two(graph, chances, "float32")
        if method == "predict_proba":
            graph.add("Identity", [chances], output)
            return
        best = graph.add("ArgMax", [chances], axis=1, keepdims=0)
        boosting.labels(graph, best, np.asarray(model.classes_), output)
        return
    if name in ("binary", "cross_entropy", "multiclass", "multiclassova"):
        raw = _probabilities(graph, name, settings, raw)
    elif name in _EXP:
        raw = graph.add("Exp", [raw])
    elif "sqrt" in settings:
        raw = graph.add("Mul", [raw, graph.add("Abs", [raw])])
    graph.add("Identity", [raw], output)


def _probabilities(graph: GraphWriter, name: str, settings: Mapping[str, str], raw: str) -> str:
    if name == "multiclass":
        return graph.add("Softmax", [raw], axis=1)
    slope = np.array([float(settings.get("sigmoid", 1.0))], dtype=np.float32)
    return graph.add("Sigmoid", [graph.add("Mul", [raw, graph.constant(slope)])])


def _prepared(graph: GraphWriter, dump: Mapping[str, Any], inputs: str) -> str:
    """The matrix as LightGBM reads it.

    Numbers next to zero are zero. A column trained without missing values takes NaN for zero; one with
    `zero_as_missing` takes zero for NaN.
    """
    splits = [
        node
        for tree in dump["tree_info"]
        for node in _splits(tree["tree_structure"])
        if node["decision_type"] == "<="
    ]
    kinds = {node["split_feature"]: node["missing_type"] for node in splits}
    features = int(dump["max_feature_idx"]) + 1
    filled = np.array([kinds.get(feature) in ("None", "Zero") for feature in range(features)])
    emptied = np.array([kinds.get(feature) == "Zero" for feature in range(features)])
    if filled.any():
        gap = graph.add("And", [graph.add("IsNaN", [inputs]), _flags(graph, filled)])
        inputs = graph.add("Where", [gap, graph.constant(np.array(0.0)), inputs])
    # Only a threshold next to zero can tell such a number from zero.
    if emptied.any() or any(abs(node["threshold"]) <= _ZERO for node in splits):
        small = graph.add("LessOrEqual", [graph.add("Abs", [inputs]), graph.constant(np.array(_ZERO))])
        zeros = graph.constant(np.where(emptied, np.nan, 0.0)[None, :])
        inputs = graph.add("Where", [small, zeros, inputs])
    return inputs


def _flags(graph: GraphWriter, flags: Any) -> str:
    """A row of booleans as a constant, which the writer of constants knows as numbers."""
    return graph.add("Cast", [graph.constant(flags.astype(np.int64)[None, :])], to=TensorProto.BOOL)
