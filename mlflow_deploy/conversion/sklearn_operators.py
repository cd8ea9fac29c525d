"""Graph parts for scikit-learn estimators that skl2onnx converts wrongly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import NodeProto, TensorProto
from onnx.helper import make_attribute
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn import ensemble, impute, preprocessing, tree

from mlflow_deploy.conversion import sklearn_encoders, sklearn_histogram

Convert = Callable[[Any, Any, Any], None]


def _trees(alias: str) -> Convert:
    """A converter of trees that does two things that skl2onnx leaves out.

    scikit-learn's own trees round their input to 32 bits before they compare it, and send a missing value
    down the branch that training chose.
    """

    def convert(scope: Any, operator: Any, container: Any) -> None:
        (given,) = operator.inputs
        if isinstance(given.type, DoubleTensorType):
            rounded = scope.declare_local_variable("rounded", FloatTensorType(given.type.shape))
            container.add_node("Cast", [given.onnx_name], [rounded.onnx_name], to=TensorProto.FLOAT)
            operator.inputs.set_element(0, rounded)
        before = len(container.nodes)
        try:
            get_converter(alias)(scope, operator, container)
        finally:
            # Members of an ensemble share the list of inputs; the next one may need the doubles.
            operator.inputs.set_element(0, given)
        added = [node for node in container.nodes[before:] if node.op_type.startswith("TreeEnsemble")]
        model = operator.raw_operator
        fitted = [part.tree_ for part in getattr(model, "estimators_", [model]) if hasattr(part, "tree_")]
        if len(added) == 1 and fitted:
            _send_missing(added[0], fitted)

    return convert


def _send_missing(node: NodeProto, fitted: Sequence[Any]) -> None:
    """Write into a tree ensemble which nodes send missing values to the true branch."""
    attributes = {item.name: item for item in node.attribute}
    places = zip(attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints, strict=True)
    left = [int(fitted[number].missing_go_to_left[place]) for number, place in places]
    name = "nodes_missing_value_tracks_true"
    if name in attributes:
        node.attribute.remove(attributes[name])
    node.attribute.append(make_attribute(name, left))


_ROUNDING = (
    tree.DecisionTreeClassifier,
    tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier,
    tree.ExtraTreeRegressor,
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
    ensemble.GradientBoostingClassifier,
    ensemble.GradientBoostingRegressor,
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
)

CONVERTERS: dict[type, Convert] = {kind: _trees(f"Sklearn{kind.__name__}") for kind in _ROUNDING}
CONVERTERS |= dict.fromkeys(
    (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor),
    sklearn_histogram.convert,
)
CONVERTERS |= {
    preprocessing.OneHotEncoder: sklearn_encoders.encode,
    preprocessing.OrdinalEncoder: sklearn_encoders.encode,
    preprocessing.TargetEncoder: sklearn_encoders.encode_target,
    impute.SimpleImputer: sklearn_encoders.impute,
}
