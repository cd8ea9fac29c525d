"""Boosters inside scikit-learn pipelines: their graphs as parts of those that skl2onnx builds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

from mlflow_deploy.conversion.boosting_graph import boosting_parts
from mlflow_deploy.conversion.graph import GraphWriter

_XGBOOST = ("XGBClassifier", "XGBRFClassifier", "XGBRegressor", "XGBRFRegressor")
_LIGHTGBM = ("LGBMClassifier", "LGBMRegressor")
_ESTIMATORS = {
    "xgboost": ("xgboost_onnx", TensorProto.FLOAT, _XGBOOST),
    "lightgbm": ("lightgbm_onnx", TensorProto.DOUBLE, _LIGHTGBM),
}
"""Library -> our module, the type of number that it computes in, and its estimators."""

_OPTIONS = {"zipmap": [True, False, "columns"], "nocl": [True, False], "raw_scores": [True, False]}
"""Of classifiers only: with them skl2onnx takes an estimator for one."""


def register(parts: Iterable[Any]) -> None:
    """Tell skl2onnx about the boosting libraries that a model uses."""
    for library in boosting_parts(iter(parts)):
        module, kind, names = _ESTIMATORS[library]
        writer = importlib.import_module(f"mlflow_deploy.conversion.{module}")
        for name in names:
            estimator = getattr(importlib.import_module(library), name)
            update_registered_converter(
                estimator,
                f"MlflowDeploy{name}",
                _shapes,
                _converter(writer, kind),
                options=_OPTIONS if name.endswith("Classifier") else None,
            )


def refuse(parts: Iterable[Any]) -> str:
    """Why a booster inside a pipeline cannot be converted, or the empty string."""
    for part in parts:
        for library in boosting_parts(iter([part])):
            module = importlib.import_module(f"mlflow_deploy.conversion.{_ESTIMATORS[library][0]}")
            why: str = module.refuse_model(part)
            if why:
                return why
    return ""


def _shapes(operator: Any) -> None:
    """Types of the outputs: a label and probabilities, or numbers."""
    model = operator.raw_operator
    if not hasattr(model, "predict_proba"):
        operator.outputs[0].type = FloatTensorType([None, 1])
        return
    text = model.classes_.dtype.kind in "OUS"
    operator.outputs[0].type = StringTensorType([None]) if text else Int64TensorType([None])
    operator.outputs[1].type = FloatTensorType([None, len(model.classes_)])


def _converter(writer: Any, kind: int) -> Callable[[Any, Any, Any], None]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        graph = GraphWriter(scope, container)
        model = operator.raw_operator
        inputs = graph.add("Cast", [operator.inputs[0].onnx_name], to=kind)
        methods = ("predict", "predict_proba")[: len(operator.outputs)]
        for method, output in zip(methods, operator.outputs, strict=True):
            writer.write_answer(graph, model, inputs, method, output.onnx_name)

    return convert
