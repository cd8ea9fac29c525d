"""Graph parts for scikit-learn estimators that skl2onnx converts wrongly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TensorProto
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn import ensemble, impute, preprocessing, tree

from mlflow_deploy.conversion import sklearn_encoders, sklearn_histogram

Convert = Callable[[Any, Any, Any], None]


def _float32_input(alias: str) -> Convert:
    """A converter that first rounds doubles to 32 bits, as scikit-learn's own trees do with their input."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        (given,) = operator.inputs
        if isinstance(given.type, DoubleTensorType):
            rounded = scope.declare_local_variable("rounded", FloatTensorType(given.type.shape))
            container.add_node("Cast", [given.onnx_name], [rounded.onnx_name], to=TensorProto.FLOAT)
            operator.inputs.set_element(0, rounded)
        get_converter(alias)(scope, operator, container)

    return convert


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

CONVERTERS: dict[type, Convert] = {kind: _float32_input(f"Sklearn{kind.__name__}") for kind in _ROUNDING}
CONVERTERS |= dict.fromkeys(
    (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor), sklearn_histogram.convert
)
CONVERTERS |= {
    preprocessing.OneHotEncoder: sklearn_encoders.encode,
    preprocessing.OrdinalEncoder: sklearn_encoders.encode,
    impute.SimpleImputer: sklearn_encoders.impute,
}
SHAPES: dict[type, Callable[[Any], None]] = {}
