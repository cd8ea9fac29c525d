"""scikit-learn to ONNX: candidates in 32-bit and 64-bit floats, with one input or one per column."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

from mlflow_deploy.bundle import SERVABLE, Feed, Output, Servable
from mlflow_deploy.conversion import sklearn_walk as walk
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.graph import OPSETS, finish
from mlflow_deploy.conversion.native import NUMERIC, Column, NativeModel
from mlflow_deploy.conversion.sklearn_operators import CONVERTERS, SHAPES

CAPABILITIES = frozenset({Capability.TEXT, Capability.MISSING, Capability.DOUBLE, Capability.TENSOR})

FILE = "model.onnx"

# Which output of the graph carries the answer of which method; the last output for those not named.
_FIRST = ("predict",)
_METHODS = ("predict", "predict_proba", "decision_function", "transform", "score_samples")

_TENSORS = {
    "float32": FloatTensorType,
    "float64": DoubleTensorType,
    "int64": Int64TensorType,
    "str": StringTensorType,
}


@dataclass(frozen=True)
class _Variant:
    """How numbers are fed: the type of real and of whole numbers, and whether all come as one input."""

    real: str
    whole: str
    merged: bool

    @property
    def label(self) -> str:
        return self.real if self.real == self.whole else f"{self.real} with {self.whole} whole numbers"


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    if native.predict_fn not in _METHODS:
        return f"the answer of {native.predict_fn} has no ONNX form"
    if native.tensor is not None:
        if len(native.tensor.shape) > 2 or any(size < 1 for size in native.tensor.shape[1:]):
            return f"an input tensor of shape {list(native.tensor.shape)} has no fixed number of columns"
        return ""
    if not native.columns:
        return "the model has no signature with named columns; log it with input_example= or signature="
    for column in native.columns:
        if column.type not in (*NUMERIC, "boolean", "string"):
            return f"column {column.name!r} has type {column.type}, which the ONNX form cannot take"
    return walk.refuse(native.raw())


def hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
    """Values per column at which the model is known to change: categories, thresholds, centres."""
    return walk.known_values(native.raw(), [column.name for column in native.columns] or None)


def candidates(native: NativeModel) -> Iterator[Candidate]:
    """Candidates, the one to be preferred first."""
    for variant in _variants(native):
        yield Candidate(label=variant.label, build=partial(_build, native, variant))


def _variants(native: NativeModel) -> Iterator[_Variant]:
    model = native.raw()
    texts = any(column.type == "string" for column in native.columns)
    merged = native.tensor is not None or not (texts or walk.selects_by_name(model))
    # A tree behind any arithmetic compares results, and 32-bit arithmetic puts some on the other side.
    order = ("float64", "float32") if walk.compares_results(model) else ("float32", "float64")
    for real in order:
        yield _Variant(real=real, whole=real, merged=merged)
    if not merged and any(column.type in ("long", "integer") for column in native.columns):
        for real in order:
            yield _Variant(real=real, whole="int64", merged=False)


def _build(native: NativeModel, variant: _Variant, folder: Path) -> Servable:
    model = native.raw()
    feeds = _feeds(native, variant, walk.missing_text(model))
    types = [(feed.name, _TENSORS[feed.dtype](_graph_shape(feed))) for feed in feeds]
    with _quiet():
        proto = convert_sklearn(
            model,
            initial_types=types,
            options=_options(model, native.predict_fn),
            target_opset=OPSETS,
            custom_conversion_functions=CONVERTERS,
            custom_shape_calculators=SHAPES,
        )
    names = [output.name for output in proto.graph.output]
    name = names[0] if native.predict_fn in _FIRST else names[-1]
    used = {item.name for item in proto.graph.input}
    (folder / FILE).write_bytes(finish(proto, [name]))
    answer = _sample_answer(native)
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{FILE}",
        feeds=tuple(feed for feed in feeds if feed.name in used),
        outputs=(Output(name=name, dtype=_dtype(answer), squeeze=answer.ndim == 1),),
        requirements=("numpy", "onnxruntime>=1.23"),
    )
