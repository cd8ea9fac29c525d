"""scikit-learn to ONNX: candidates in 32-bit and 64-bit floats, with one input or one per column."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from msgspec import structs
from onnx import ModelProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

from mlflow_deploy.bundle import SERVABLE, Feed, Output, Servable
from mlflow_deploy.conversion import sklearn_walk as walk
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.boosting_graph import boosting_parts
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.graph import MISSING_TEXT, OPSETS, finish
from mlflow_deploy.conversion.native import NUMERIC, Column, NativeModel, quiet
from mlflow_deploy.conversion.sklearn_operators import CONVERTERS

CAPABILITIES = frozenset({Capability.TEXT, Capability.TENSOR})

FILE = "model.onnx"

_METHODS = ("predict", "predict_proba")

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
    why = walk.refuse(native.raw())
    if why or not boosting_parts(walk.parts(native.raw())):
        return why
    from mlflow_deploy.conversion import boosting_sklearn

    return boosting_sklearn.refuse(walk.parts(native.raw()))


def hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
    """Values per column at which the model is known to change: categories, thresholds, centres."""
    return walk.known_values(native.raw(), [column.name for column in native.columns] or None)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """Candidates, the one to be preferred first; `answer` is a native answer, whose shape and dtype is kept."""
    array = answer.array
    for variant in _variants(native):
        graph = _Graph(native, variant)
        output = Output(name="", dtype=_dtype(array), squeeze=array.ndim == 1)
        probe = None
        if native.probabilities() is not None:
            probe = partial(graph.build, "predict_proba", Output(name="", dtype="float64"))
        yield Candidate(
            label=variant.label, build=partial(graph.build, native.predict_fn, output), probe=probe
        )


class _Graph:
    """The graph of one variant: converted once, written with the output that is wanted."""

    def __init__(self, native: NativeModel, variant: _Variant) -> None:
        self._native, self._variant = native, variant
        self._model = walk.convertible(native.raw())

    @cached_property
    def _proto(self) -> ModelProto:
        if boosting_parts(walk.parts(self._model)):
            from mlflow_deploy.conversion import boosting_sklearn

            boosting_sklearn.register(walk.parts(self._model))
        types = [(feed.name, _TENSORS[feed.dtype](_graph_shape(feed))) for feed in self._feeds]
        with quiet(), _quiet_converter():
            try:
                proto: ModelProto = convert_sklearn(
                    self._model,
                    initial_types=types,
                    options=_options(self._model),
                    target_opset=OPSETS,
                    custom_conversion_functions=CONVERTERS,
                )
            except (MissingConverter, MissingShapeCalculator) as error:
                # The original text is a page of advice on how to write a converter.
                names = re.findall(r"'<class '([\w.]+)'>'", str(error)) or [str(error)[:100]]
                raise NotImplementedError(f"skl2onnx has no converter for {names[0]}") from error
        return proto

    @property
    def _feeds(self) -> list[Feed]:
        return _feeds(self._native, self._variant)

    def build(self, method: str, output: Output, folder: Path) -> Servable:
        """Write the graph with the output of a method; `output` lacks only its name."""
        proto = ModelProto()
        proto.CopyFrom(self._proto)
        names = [item.name for item in proto.graph.output]
        name = names[0] if method == "predict" else names[-1]
        (folder / FILE).write_bytes(finish(proto, [name]))
        used = {item.name for item in proto.graph.input}
        return Servable(
            kind="onnx",
            path=f"{SERVABLE}/{FILE}",
            feeds=tuple(feed for feed in self._feeds if feed.name in used),
            outputs=(structs.replace(output, name=name),),
            requirements=("numpy", "onnxruntime>=1.23"),
        )


def _variants(native: NativeModel) -> Iterator[_Variant]:
    model = native.raw()
    texts = any(column.type == "string" for column in native.columns)
    merged = native.tensor is not None or not (texts or walk.selects_by_name(model))
    order = ("float64",) if walk.decides_in_64_bits(model) else ("float32", "float64")
    for real in order:
        yield _Variant(real=real, whole=real, merged=merged)
    if not merged and any(column.type in ("long", "integer") for column in native.columns):
        for real in order:
            yield _Variant(real=real, whole="int64", merged=False)


def _dtype(answer: Array) -> str:
    return "str" if answer.dtype.kind in "OUS" else answer.dtype.name


def _feeds(native: NativeModel, variant: _Variant) -> list[Feed]:
    if native.tensor is not None:
        dtype = "str" if native.tensor.dtype == "str" else variant.real
        shape = tuple(native.tensor.shape)
        return [
            Feed(
                name="input",
                dtype=dtype,
                tensor="",
                shape=shape,
                missing=MISSING_TEXT if dtype == "str" else None,
            )
        ]
    if variant.merged:
        columns = tuple(column.name for column in native.columns)
        return [Feed(name="input", dtype=variant.real, columns=columns)]
    return [_column_feed(column, variant) for column in native.columns]


def _column_feed(column: Column, variant: _Variant) -> Feed:
    if column.type == "string":
        return Feed(name=column.name, dtype="str", columns=(column.name,), missing=MISSING_TEXT)
    whole = column.type in ("long", "integer")
    return Feed(name=column.name, dtype=variant.whole if whole else variant.real, columns=(column.name,))


def _graph_shape(feed: Feed) -> list[int | None]:
    if feed.tensor is None:
        return [None, len(feed.columns)]
    return [None, *feed.shape[1:]]


def _options(model: Any) -> dict[int, dict[str, Any]]:
    """Options per estimator: probabilities as an array, texts split as scikit-learn splits them."""
    options: dict[int, dict[str, Any]] = {}
    if walk.is_classifier(model):
        # skl2onnx adds a ZipMap to every pipeline whose options are silent, even where none is possible.
        options[id(model)] = {"zipmap": False} if hasattr(model, "predict_proba") else {"nocl": False}
    for vectorizer in walk.vectorizers(model):
        # The locale that every Linux has; the pattern is what Python's \w means, in the words of RE2.
        options[id(vectorizer)] = {"locale": "C.UTF-8", "tokenexp": r"[\p{L}\p{N}_]{2,}"}
    return options


@contextmanager
def _quiet_converter() -> Iterator[None]:
    """Silence what skl2onnx says about scikit-learn's own deprecations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(skl2onnx|sklearn)\.")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(skl2onnx|onnx|numpy)\.")
        yield
