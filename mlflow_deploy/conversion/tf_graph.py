"""Keras and TensorFlow models of MLflow as frozen graphs: weights as constants, canonical names."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# TensorFlow prints what it finds on the machine before it can be told not to.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from mlflow_deploy.conversion import networks
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.networks import Input

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Frozen:
    """A graph without variables.

    Attributes:
        graph: nodes and functions with canonical names.
        inputs: inputs of the graph; each is a node of its name.
        outputs: names of the outputs, in the order of the answer's arrays.
        infos: TensorFlow's description of each input and output.
    """

    graph: GraphDef
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    infos: Mapping[str, TensorInfo]


def refuse(native: NativeModel) -> str:
    """Why a model has no graph at all, or the empty string."""
    flavors = native.meta.flavors
    backend = str(flavors.get("keras", {}).get("keras_backend", "tensorflow"))
    if backend != "tensorflow":
        return f"it was logged with Keras on {backend}, and only Keras on TensorFlow has these graphs"
    if flavors.get("tensorflow", {}).get("model_type") == "tf1-estimator":
        return "it is an estimator of TensorFlow 1; log it as a tf.Module or a Keras model"
    why = networks.refuse_signature(native, columns=False)
    if why:
        return why
    with quiet():
        try:
            answer = native.predict(networks.samples(native))
        except TypeError as error:
            return (
                f"{error}; a Keras model with several outputs names them: "
                'keras.Model(inputs, {"first": first, "second": second})'
            )
        except Exception:  # noqa: BLE001 - the next check says what is refused and why
            return networks.refuse_answers(native)
        if answer.form == "columns":
            return "it answers with a DataFrame, which is no output of the model itself"
        size = sum(int(tf.size(item)) * item.dtype.size for item in _weights(native.raw()))
        if size > networks.LARGEST:
            return f"its weights take {size / 1e9:.1f} GB, and a frozen graph holds 2 GB; use format=pyfunc"
        return networks.refuse_answers(native)


def _weights(raw: Any) -> Sequence[Any]:
    found = getattr(raw, "variables", ())
    return [tf.convert_to_tensor(item) for item in (found or ())]


def graph_inputs(native: NativeModel) -> tuple[Input, ...]:
    """The inputs; floats come as the 32-bit floats that Keras casts them to."""
    keras = _is_keras(native.raw())
    dtypes = {item.name: "float32" for item in native.tensors if keras and item.dtype == "float64"}
    if keras and native.raw().dtype_policy.compute_dtype == "float64":
        dtypes = {}
    return networks.inputs(native, dtypes)


def _is_keras(raw: Any) -> bool:
    return hasattr(raw, "dtype_policy")


def freeze(native: NativeModel, answer: Answer, *, rows: int | None = None) -> Frozen:
    """The model as a frozen graph.

    Args:
        rows: the number of rows of every call; None leaves it free where the signature does.

    Raises:
        NotImplementedError: the model has a part that no frozen graph can hold; the text names it.
    """
    inputs = graph_inputs(native)
    specs = [tf.TensorSpec(_shape(item, rows), item.dtype, name=item.name) for item in inputs]
    with quiet():
        call = tf.function(_call(native, answer), input_signature=specs, autograph=False)
        try:
            frozen = convert_variables_to_constants_v2(
                call.get_concrete_function(), lower_control_flow=False, aggressive_inlining=True
            )
        except Exception as error:
            raise NotImplementedError(f"TensorFlow says: {networks.first_line(error)}") from error
    graph = frozen.graph.as_graph_def()
    _refuse_resources(graph, [tensor.op.name for tensor in frozen.inputs[len(inputs) :]])
    names = tuple(f"output_{index}" for index in range(len(frozen.outputs)))
    fixed = {tensor.op.name: item.name for tensor, item in zip(frozen.inputs, inputs, strict=True)}
    ends = {
        name: (tensor.op.name, tensor.value_index) for name, tensor in zip(names, frozen.outputs, strict=True)
    }
    canonical(graph, fixed, ends)
    infos = {item.name: _info(item.name, tensor) for item, tensor in zip(inputs, frozen.inputs, strict=True)}
    infos |= {name: _info(name, tensor) for name, tensor in zip(names, frozen.outputs, strict=True)}
    return Frozen(graph, inputs, names, infos)


_RESOURCES = frozenset({"HashTableV2", "MutableHashTableV2", "VarHandleOp", "PyFunc", "EagerPyFunc"})


def _refuse_resources(graph: GraphDef, captured: Sequence[str]) -> None:
    """Raise for what lives outside of the graph: tables, Python code, and inputs that hold such a thing."""
    found = sorted({node.op for node in graph.node if node.op in _RESOURCES})
    if found or captured:
        what = ", ".join(found) or f"table or another resource ({', '.join(captured)})"
        raise NotImplementedError(
            f"the model needs a {what}, such as a text vocabulary, which lives outside of the graph; "
            "use format=pyfunc"
        )


def _shape(item: Input, rows: int | None) -> list[int | None]:
    shape = [None if size == -1 else size for size in item.shape]
    return [rows, *shape[1:]] if rows else shape


def _call(native: NativeModel, answer: Answer) -> Callable[..., list[Any]]:
    """The model as a function of its inputs, in order, to its outputs, in order."""
    raw = native.raw()
    names = [tensor.name for tensor in native.tensors]
    serve = raw.serve if hasattr(raw, "serve") else raw

    def call(*tensors: Any) -> list[Any]:
        given = tensors[0] if native.tensor is not None else dict(zip(names, tensors, strict=True))
        result = serve(given, training=False) if _is_keras(raw) else serve(given)
        found = [result[name] for name in answer.arrays] if answer.form == "dict" else [result]
        return [tf.identity(item) for item in found]

    return call


def _info(name: str, tensor: Any) -> TensorInfo:
    info = TensorInfo(name=f"{name}:0", dtype=tensor.dtype.as_datatype_enum)
    info.tensor_shape.CopyFrom(tensor.shape.as_proto())
    return info


def saved_model(frozen: Frozen) -> bytes:
    """The content of `saved_model.pb`, which is all that the SavedModel of a frozen graph has."""
    model = SavedModel(saved_model_schema_version=1)
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append(tf.saved_model.SERVING)
    meta.meta_info_def.tensorflow_version = tf.__version__
    meta.graph_def.CopyFrom(frozen.graph)
    signature = meta.signature_def[SIGNATURE]
    signature.method_name = "tensorflow/serving/predict"
    for item in frozen.inputs:
        signature.inputs[item.name].CopyFrom(frozen.infos[item.name])
    for name in frozen.outputs:
        signature.outputs[name].CopyFrom(frozen.infos[name])
    return bytes(model.SerializeToString(deterministic=True))


# --- canonical names ---------------------------------------------------------------------------------------


def canonical(graph: GraphDef, inputs: Mapping[str, str], outputs: Mapping[str, tuple[str, int]]) -> None:
    """Rename all nodes and functions in the order of use: TensorFlow counts them over a process.

    Args:
        inputs: new names of the placeholders.
        outputs: for each output its name, and the node and number of what it gives; an Identity is added.
    """
    for name, (node, index) in outputs.items():
        dtype = next(item.attr["T"].type for item in graph.node if item.name == node)
        added = graph.node.add(name=f"{node}{_END}{name}", op="Identity", input=[f"{node}:{index}"])
        added.attr["T"].type = dtype
    nodes = {node.name: f"n{index}" for index, node in enumerate(graph.node)}
    nodes |= inputs
    nodes |= {f"{node}{_END}{name}": name for name, (node, _) in outputs.items()}
    functions = _function_names(graph)
    for node in graph.node:
        _rename(node, nodes, functions)
    for function in graph.library.function:
        signature = function.signature
        signature.name = functions[signature.name]
        inner = {node.name: f"n{index}" for index, node in enumerate(function.node_def)}
        inner |= {item.name: f"a{index}" for index, item in enumerate(signature.input_arg)}
        results = {item.name: f"r{index}" for index, item in enumerate(signature.output_arg)}
        for item in signature.input_arg:
            item.name = inner[item.name]
        for item in signature.output_arg:
            item.name = results[item.name]
        ret = {results[name]: _reference(value, inner) for name, value in function.ret.items()}
        function.ret.clear()
        function.ret.update(ret)
        control = {name: inner[value] for name, value in function.control_ret.items()}
        function.control_ret.clear()
        function.control_ret.update({f"c{i}": value for i, value in enumerate(sorted(control.values()))})
        del signature.control_output[:]
        signature.control_output.extend(sorted(function.control_ret))
        function.arg_attr.clear()
        function.attr.clear()
        for node in function.node_def:
            _rename(node, inner, functions)
    ordered = sorted(graph.library.function, key=lambda item: int(item.signature.name[1:]))
    del graph.library.function[:]
    graph.library.function.extend(ordered)


_END = "/end/"


def _function_names(graph: GraphDef) -> dict[str, str]:
    """New names of functions, in the order in which nodes refer to them."""
    known = {function.signature.name: function for function in graph.library.function}
    names: dict[str, str] = {}

    def visit(nodes: Iterable[Any]) -> None:
        for node in nodes:
            for name in _functions_of(node):
                if name in known and name not in names:
                    names[name] = f"f{len(names)}"
                    visit(known[name].node_def)

    visit(graph.node)
    for name in itertools.filterfalse(names.__contains__, sorted(known)):
        graph.library.function.remove(known[name])
    return names


def _functions_of(node: Any) -> Iterator[str]:
    yield node.op
    for key in sorted(node.attr):
        value = node.attr[key]
        if value.HasField("func"):
            yield value.func.name
        for item in value.list.func:
            yield item.name


_REFERENCE = re.compile(r"(\^?)([^:]+)(.*)")


def _reference(text: str, names: Mapping[str, str]) -> str:
    control, name, rest = _REFERENCE.fullmatch(text).groups()  # type: ignore[union-attr]
    return f"{control}{names[name]}{rest}"


def _rename(node: Any, names: Mapping[str, str], functions: Mapping[str, str]) -> None:
    node.name = names[node.name]
    node.op = functions.get(node.op, node.op)
    given = [_reference(text, names) for text in node.input]
    del node.input[:]
    node.input.extend(given)
    node.device = ""
    node.ClearField("experimental_debug_info")
    for key in list(node.attr):
        if key == "_class" or (key.startswith("_") and key != "_output_shapes"):
            del node.attr[key]
            continue
        value = node.attr[key]
        if value.HasField("func"):
            value.func.name = functions[value.func.name]
        for item in value.list.func:
            item.name = functions[item.name]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence deprecations inside TensorFlow and its converters."""
    loggers = [tf.get_logger(), *_loggers()]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            for logger in loggers:
                logger.setLevel("ERROR")
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _loggers() -> list[Any]:
    import logging

    return [logging.getLogger(name) for name in ("absl", "tf2onnx")]
