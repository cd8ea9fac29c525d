"""XGBoost to ONNX: native boosters and scikit-learn wrappers, read from the model's own JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from onnx import TensorProto

from mlflow_deploy.bundle import SERVABLE, Output, Servable
from mlflow_deploy.conversion import boosting_graph as boosting
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.graph import GraphWriter, finish
from mlflow_deploy.conversion.native import NativeModel

CAPABILITIES = frozenset({Capability.TENSOR})

FILE = "model.onnx"

_F4 = "float32"

_LOG = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")
_LOGISTIC = ("binary:logistic", "reg:logistic")
_PLAIN = (
    "reg:squarederror", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror",
    "reg:linear", "binary:logitraw", "rank:pairwise", "rank:ndcg", "rank:map",
)  # fmt: skip
_CLASSES = ("multi:softprob", "multi:softmax")
_OBJECTIVES = (*_LOG, *_LOGISTIC, *_PLAIN, *_CLASSES, "binary:hinge")


@dataclass(frozen=True)
class Booster:
    """A booster's JSON, and which of its trees answer.

    Attributes:
        learner: the part `learner` of the JSON.
        missing: the number that stands for a missing value.
    """

    learner: Mapping[str, Any]
    missing: float

    @property
    def objective(self) -> str:
        return str(self.learner["objective"]["name"])

    @property
    def kind(self) -> str:
        return str(self.learner["gradient_booster"]["name"])

    @property
    def features(self) -> int:
        return int(self.learner["learner_model_param"]["num_feature"])

    @property
    def targets(self) -> int:
        params = self.learner["learner_model_param"]
        return max(int(params["num_class"]), int(params["num_target"]), 1)

    @property
    def forest(self) -> tuple[Mapping[str, Any], list[float]]:
        """The trees, and what each is multiplied with."""
        part = self.learner["gradient_booster"]
        model = part["gbtree"]["model"] if self.kind == "dart" else part["model"]
        weights = part["weight_drop"] if self.kind == "dart" else [1.0] * len(model["trees"])
        return model, weights


def read(model: Any) -> Booster:
    """The booster of a native or wrapped model, cut to the trees with which it answers."""
    missing = float(getattr(model, "missing", np.nan))
    if not isinstance(model, xgboost.Booster):
        booster = model.get_booster()
        # The wrappers answer with the best iteration, a native booster with all of them.
        best = booster.attr("best_iteration")
        if best is not None and int(best) + 1 < booster.num_boosted_rounds():
            booster = booster[: int(best) + 1]
    else:
        booster = model
    return Booster(json.loads(booster.save_raw("json"))["learner"], missing)


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return boosting.refuse_inputs(native) or refuse_model(native.raw())


def refuse_model(model: Any) -> str:
    """Why a booster cannot be converted, or the empty string."""
    booster = read(model)
    if booster.kind not in ("gbtree", "dart"):
        return f"the booster {booster.kind} is not made of trees"
    if booster.objective not in _OBJECTIVES:
        return f"the objective {booster.objective!r} has no ONNX form"
    model_, _ = booster.forest
    if any(int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in model_["trees"]):
        return "trees with several outputs each (multi_strategy='multi_output_tree') have no ONNX form"
    return ""


def hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
    """Thresholds and categories of the trees."""
    return boosting.by_column(native, ensemble(read(native.raw())).thresholds())


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The one candidate: XGBoost itself compares and adds in 32-bit floats."""
    array = answer.array
    build = partial(_build, native, native.predict_fn)
    output = Output(name="answer", dtype=array.dtype.name, squeeze=array.ndim == 1)
    probe = None
    if native.probabilities() is not None:
        probe = partial(_build, native, "predict_proba", Output(name="answer", dtype="float32"))
    yield Candidate(label=_F4, build=partial(build, output), probe=probe)


def _build(native: NativeModel, method: str, output: Output, folder: Path) -> Servable:
    builder = boosting.Builder()
    graph = GraphWriter(builder, builder)
    write_answer(graph, native.raw(), boosting.INPUT, method, output.name)
    model = builder.model(boosting.widths(native), _F4, [output.name])
    (folder / FILE).write_bytes(finish(model, [output.name]))
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{FILE}",
        feeds=(boosting.matrix_feed(native, _F4),),
        outputs=(output,),
        requirements=("numpy", "onnxruntime>=1.23"),
    )


# --- the graph ---------------------------------------------------------------------------------------------


def ensemble(booster: Booster) -> boosting.Ensemble:
    """The trees of a booster."""
    forest, weights = booster.forest
    base = np.asarray(
        json.loads(booster.learner["learner_model_param"]["base_score"].lower()), dtype=np.float64
    )
    base = np.broadcast_to(_margin(booster.objective, np.atleast_1d(base)), booster.targets)
    found = boosting.Ensemble(booster.features, booster.targets, base, _F4, "BRANCH_LT")
    for number, (tree, target, weight) in enumerate(
        zip(forest["trees"], forest["tree_info"], weights, strict=True)
    ):
        _tree(found, number, tree, int(target), float(weight))
    return found


def _margin(objective: str, base: Array) -> Array:
    """The base score before the objective's transformation."""
    if objective in _LOGISTIC:
        return np.log(base / (1.0 - base))
    return np.log(base) if objective in _LOG else base


def _tree(found: boosting.Ensemble, number: int, tree: Mapping[str, Any], target: int, weight: float) -> None:
    sets = dict(
        zip(
            tree["categories_nodes"],
            zip(tree["categories_segments"], tree["categories_sizes"], strict=True),
            strict=True,
        )
    )
    stack = [0]
    while stack:
        node = stack.pop()
        left, right = int(tree["left_children"][node]), int(tree["right_children"][node])
        value = np.float32(tree["split_conditions"][node])
        if left < 0:
            found.leaf(number, node, target, float(value * np.float32(weight)))
            continue
        stack += [right, left]
        feature, missing_left = int(tree["split_indices"][node]), bool(tree["default_left"][node])
        if node in sets:
            start, size = sets[node]
            # The categories of the set go to the right, which makes it the true branch here.
            codes = tree["categories"][start : start + size]
            found.split_set(number, node, feature, codes, (right, left), not missing_left)
        else:
            found.split(number, node, feature, float(value), (left, right), missing_left)


def write_answer(graph: GraphWriter, model: Any, inputs: str, method: str, output: str) -> None:
    """Add a whole model: from the matrix `inputs` of 32-bit floats to the answer of a method."""
    booster = read(model)
    if not np.isnan(booster.missing):
        gap = graph.add("Equal", [inputs, graph.constant(np.array(booster.missing, dtype=np.float32))])
        inputs = graph.add("Where", [gap, graph.constant(np.array(np.nan, dtype=np.float32)), inputs])
    raw = boosting.write(graph, ensemble(booster), inputs)
    if isinstance(model, xgboost.XGBClassifier):
        write_classes(graph, booster, raw, np.asarray(model.classes_), method, output)
        return
    _TRANSFORMS.get(booster.objective, _identity)(graph, raw, output)


def write_classes(
    graph: GraphWriter, booster: Booster, raw: str, classes: Array, method: str, output: str
) -> None:
    """Add labels or probabilities of a wrapped classifier."""
    if booster.objective in _CLASSES:
        chances = graph.add("Softmax", [raw], axis=1)
    elif booster.objective in _LOGISTIC and booster.targets == 1:
        chances = boosting.probabilities_of_two(graph, graph.add("Sigmoid", [raw]), _F4)
    else:
        raise NotImplementedError(f"a classifier with the objective {booster.objective!r} has no ONNX form")
    if method == "predict_proba":
        graph.add("Identity", [chances], output)
        return
    boosting.labels(graph, graph.add("ArgMax", [chances], axis=1, keepdims=0), classes, output)


def _identity(graph: GraphWriter, raw: str, output: str) -> None:
    graph.add("Identity", [raw], output)


def _sigmoid(graph: GraphWriter, raw: str, output: str) -> None:
    graph.add("Sigmoid", [raw], output)


def _exp(graph: GraphWriter, raw: str, output: str) -> None:
    graph.add("Exp", [raw], output)


def _softmax(graph: GraphWriter, raw: str, output: str) -> None:
    graph.add("Softmax", [raw], output, axis=1)


def _argmax(graph: GraphWriter, raw: str, output: str) -> None:
    graph.add("ArgMax", [raw], output, axis=1, keepdims=0)


def _positive(graph: GraphWriter, raw: str, output: str) -> None:
    positive = graph.add("Greater", [raw, graph.constant(np.zeros(1, dtype=np.float32))])
    graph.add("Cast", [positive], output, to=TensorProto.FLOAT)


_TRANSFORMS: dict[str, Callable[[GraphWriter, str, str], None]] = {
    **dict.fromkeys(_LOG, _exp),
    **dict.fromkeys(_LOGISTIC, _sigmoid),
    "multi:softprob": _softmax,
    "multi:softmax": _argmax,
    "binary:hinge": _positive,
}
