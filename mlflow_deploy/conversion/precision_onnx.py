"""ONNX graphs in lower precision: int8 with static or dynamic scales, and fp16."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion.base import Candidate
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.graph import finish

if TYPE_CHECKING:
    from onnx import ModelProto

FILE = "model.onnx"

_MATRIX = ("MatMul", "Gemm", "LSTM")
_CONVOLUTION = ("Conv", "ConvTranspose")

_STATIC = (
    "Conv", "MatMul", "Gemm", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat",
    "Flatten", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that work on 8-bit numbers. Softmax, Sigmoid, Tanh and norms are left out: an eighth of a bit of a
probability is more than a model's answers differ by."""

_DYNAMIC = ("MatMul", "Gemm", "LSTM")
"""Never convolutions: scales computed at run time make them slower than 32-bit floats."""

_REDUCED = True
"""Weights take 7 of the 8 bits. On processors without VNNI two products of 8 bits overflow their 16-bit sum, so
that answers would be wrong there and only there; with 7 bits they are the same on every processor."""


@dataclass(frozen=True)
class OnnxSource:
    """A converted graph and the rows to calibrate on.

    Attributes:
        servable: the description of the 32-bit servable.
        path: its graph.
        feeds: inputs of the graph, in batches as large as it takes them; at least one batch for static int8.
    """

    servable: Servable
    path: Path
    feeds: Sequence[Mapping[str, Array]]


def refuse(path: Path, precision: str) -> str:
    """Why a graph cannot have a precision, or the empty string."""
    kinds, floats = _weights(path)
    if precision == "int8" and not kinds.intersection((*_MATRIX, *_CONVOLUTION)):
        return "its graph has no matrix product or convolution with fixed 32-bit weights to store in 8 bits"
    if precision == "fp16" and not floats:
        return "its graph has no 32-bit weights to store in 16 bits"
    return ""


def candidates(source: OnnxSource, precision: str) -> Iterator[Candidate]:
    """Graphs of one precision, the one that is expected to be fastest first.

    Args:
        precision: int8 or fp16.
    """
    if precision == "fp16":
        yield _candidate(source, "fp16", "fp16", half)
        return
    kinds, _ = _weights(source.path)
    if source.feeds:
        yield _candidate(source, "int8 static", "int8", partial(static_int8, feeds=source.feeds))
    if not kinds.intersection(_CONVOLUTION):
        if source.feeds:
            whole = partial(static_int8, feeds=source.feeds, per_channel=False)
            yield _candidate(source, "int8 static per tensor", "int8", whole)
        # One scale for a whole batch: rows of other requests would change a row's answer.
        alone = replace(source, servable=structs.replace(source.servable, batchable=False))
        yield _candidate(alone, "int8 dynamic", "int8", dynamic_int8)


def _candidate(
    source: OnnxSource, label: str, precision: str, lower: Callable[[Path], ModelProto]
) -> Candidate:
    def build(folder: Path) -> Servable:
        model = lower(source.path)
        names = [output.name for output in model.graph.output]
        (folder / FILE).write_bytes(finish(model, names))
        return structs.replace(source.servable, path=f"{SERVABLE}/{FILE}", precision=precision)

    return Candidate(label=label, build=build)


# --- the three ways ----------------------------------------------------------------------------------------


def static_int8(path: Path, *, feeds: Sequence[Mapping[str, Array]], per_channel: bool = True) -> ModelProto:
    """Weights in 8 bits; inner numbers in 8 bits with ranges measured on calibration rows.

    The answer itself stays in 32-bit floats.

    Args:
        feeds: inputs of the graph from calibration rows, batch by batch.
        per_channel: a scale for each column of weights, which is closer to the 32-bit graph; one for all is a
            fifth faster at one row, where scaling the sums takes as long as making them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _prepared(path) as prepared:
        quantize_static(
            str(prepared),
            str(prepared.with_name("int8.onnx")),
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=_REDUCED,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_STATIC),
        )
        model = onnx.load(str(prepared.with_name("int8.onnx")))
    _float_outputs(model)
    return _sorted(model)


def dynamic_int8(path: Path) -> ModelProto:
    """Weights of matrix products in 8 bits; the scale of each input is computed when it comes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _prepared(path) as prepared:
        quantize_dynamic(
            str(prepared),
            str(prepared.with_name("int8.onnx")),
            per_channel=True,
            reduce_range=_REDUCED,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_DYNAMIC),
        )
        model = onnx.load(str(prepared.with_name("int8.onnx")))
    return _sorted(model)


def half(path: Path) -> ModelProto:
    """Weights and arithmetic in 16-bit floats; inputs and answers stay in 32 bits."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(path))
    # Declared types of inner values would contradict the new ones.
    del model.graph.value_info[:]
    with warnings.catch_warnings():
        # Numbers beyond what 16 bits hold are cut; whether that matters, parity finds out.
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        converted = convert_float_to_float16(onnx.shape_inference.infer_shapes(model), keep_io_types=True)
    return _sorted(converted)


# --- around the quantiser ----------------------------------------------------------------------------------


@contextmanager
def _prepared(path: Path) -> Iterator[Path]:
    """A copy of the graph as the quantiser wants it: inner shapes known, constants and norms folded."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder, _quiet():
        model = onnx.load(str(path))
        # The exporters' shapes of inner values are wrong in places, and the quantiser compares them.
        del model.graph.value_info[:]
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        # From a file: given a model in memory it moves the weights to a file that it then loses.
        onnx.save(model, str(plain))
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        _flatten_biases(model)
        onnx.save(model, str(prepared))
        yield prepared


def _flatten_biases(model: ModelProto) -> None:
    """Biases of shape [1, n] as [n], which mean the same: the static quantiser fails on the former."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    for item in model.graph.initializer:
        if item.name in biases and len(item.dims) == 2 and item.dims[0] == 1:
            del item.dims[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger to prepare the graph, also where it is prepared."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _reader(feeds: Sequence[Mapping[str, Array]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._left, None)
            return None if batch is None else dict(batch)

    return Reader()


def _sorted(model: ModelProto) -> ModelProto:
    """Every node after those whose outputs it takes; the quantiser appends nodes where it likes."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.topological_sort()
    ordered: ModelProto = wrapped.model
    return ordered


def _float_outputs(model: ModelProto) -> None:
    """Take the rounding to 8 bits away from the answers, where it costs most and saves nothing."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        back = makers.get(output.name)
        there = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        if back is None or there is None or there.op_type != "QuantizeLinear":
            continue
        inner = there.input[0]
        back.output[0] = f"{output.name}_rounded"
        for node in model.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == inner:
                        names[position] = output.name


def _weights(path: Path) -> tuple[set[str], bool]:
    """Kinds of nodes that have fixed 32-bit weights, and whether any such weights are there."""
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(path), load_external_data=False)
    floats = {item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT}
    # Exporters put transposes and casts between weights and their use.
    for node in model.graph.node:
        if node.op_type in ("Transpose", "Identity", "Reshape", "Constant") and floats.issuperset(
            node.input[:1]
        ):
            floats.update(node.output)
    kinds = {node.op_type for node in model.graph.node if floats.intersection(node.input[1:])}
    return kinds, bool(floats)
