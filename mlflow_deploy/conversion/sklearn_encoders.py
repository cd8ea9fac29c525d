"""Encoders and imputers in ONNX: every category, unknown and missing value as scikit-learn answers it."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

from mlflow_deploy.conversion.graph import MISSING_TEXT, GraphWriter

Array = np.ndarray[Any, Any]

_ELEMENT = {
    FloatTensorType: TensorProto.FLOAT,
    DoubleTensorType: TensorProto.DOUBLE,
    Int64TensorType: TensorProto.INT64,
    StringTensorType: TensorProto.STRING,
}


def encode(scope: Any, operator: Any, container: Any) -> None:
    """Write the graph of a OneHotEncoder or OrdinalEncoder: one table per column, looked up by category."""
    graph, encoder = GraphWriter(scope, container), operator.raw_operator
    columns = _columns(graph, operator.inputs)
    if len(columns) != len(encoder.categories_):
        raise ValueError(f"the encoder has {len(encoder.categories_)} columns, the graph {len(columns)}")
    whole = np.issubdtype(encoder.dtype, np.integer)
    parts = []
    for index, (column, kind) in enumerate(columns):
        table = _table(encoder, index).astype(np.int64 if whole else np.float32)
        refuses = encoder.handle_unknown == "error"
        position = _position(graph, column, kind, encoder.categories_[index], refuses=refuses)
        parts.append(graph.add("Gather", [graph.constant(table), position], axis=0))
    graph.add("Concat", parts, operator.outputs[0].onnx_name, axis=1)


def encode_target(scope: Any, operator: Any, container: Any) -> None:
    """Write the graph of a TargetEncoder: the encoding of each category, the target mean for unknown ones."""
    graph, encoder = GraphWriter(scope, container), operator.raw_operator
    if encoder.target_type_ == "multiclass":
        raise NotImplementedError("TargetEncoder for more than two classes has no ONNX form here")
    parts = []
    for index, (column, kind) in enumerate(_columns(graph, operator.inputs)):
        categories, known = encoder.categories_[index], encoder.encodings_[index]
        missing = [value for value, name in zip(known, categories, strict=True) if _is_nan(name)]
        mean = float(encoder.target_mean_)
        table = np.array([*known, mean, missing[0] if missing else mean], dtype=np.float32)[:, None]
        position = _position(graph, column, kind, categories)
        parts.append(graph.add("Gather", [graph.constant(table), position], axis=0))
    graph.add("Concat", parts, operator.outputs[0].onnx_name, axis=1)


def _columns(graph: GraphWriter, inputs: Any) -> list[tuple[str, Any]]:
    """The inputs split into columns of shape [rows, 1], with the type of each."""
    columns = []
    for given in inputs:
        width = given.type.shape[1]
        for index in range(width):
            name = given.onnx_name
            if width > 1:
                name = graph.add("Gather", [name, graph.constant(np.array([index]))], axis=1)
            columns.append((name, type(given.type)))
    return columns


def _table(encoder: Any, index: int) -> Array:
    """What the encoder answers for one column: a row per category, then one for unknown, one for missing."""
    categories = encoder.categories_[index]
    first = [values[0] for values in encoder.categories_]
    rows = np.empty((len(categories), len(first)), dtype=object)
    for position, value in enumerate(first):
        rows[:, position] = value
    rows[:, index] = categories
    if all(values.dtype.kind != "O" for values in encoder.categories_):
        rows = rows.astype(np.result_type(*(values.dtype for values in encoder.categories_)))
    answer = encoder.transform(rows)
    answer = np.asarray(answer.todense() if hasattr(answer, "todense") else answer, dtype=np.float64)
    if hasattr(encoder, "_n_features_outs"):
        start = int(sum(encoder._n_features_outs[:index]))
        answer = answer[:, start : start + int(encoder._n_features_outs[index])]
    else:
        answer = answer[:, index : index + 1]
    unknown = _unknown(encoder, index, answer.shape[1])
    missing = [row for row, value in zip(answer, categories, strict=True) if _is_nan(value)]
    return np.vstack([answer, unknown, missing[0] if missing else unknown])


def _unknown(encoder: Any, index: int, width: int) -> Array:
    """The answer for a category that training did not see; not looked up where that is an error."""
    if encoder.handle_unknown == "use_encoded_value":
        return np.full(width, float(encoder.unknown_value))
    row = np.zeros(width)
    infrequent = getattr(encoder, "infrequent_categories_", None)
    if encoder.handle_unknown in ("infrequent_if_exist", "warn") and infrequent is not None:
        members = infrequent[index]
        if members is not None and len(members):
            # scikit-learn puts the infrequent group last.
            row[-1] = 1.0
    return row


def _position(graph: GraphWriter, column: str, kind: Any, categories: Array, *, refuses: bool = False) -> str:
    """Row of the table for each row of a column: shape [rows].

    Args:
        refuses: the encoder raises on an unknown category. The graph then looks beyond the end of the table,
            which ONNX Runtime raises on too: an error is better than a made-up answer.
    """
    known = np.array([not _is_nan(value) for value in categories])
    count = len(categories)
    unknown = count + 2 if refuses else count
    positions = np.flatnonzero(known)
    if kind is StringTensorType:
        found = graph.add(
            "LabelEncoder",
            [column],
            op_domain="ai.onnx.ml",
            op_version=2,
            keys_strings=[*(str(value) for value in categories[known]), MISSING_TEXT],
            values_int64s=[*positions.tolist(), count + 1],
            default_int64=unknown,
        )
        return graph.add("Reshape", [found, graph.constant(np.array([-1]))])
    dtype = {FloatTensorType: np.float32, DoubleTensorType: np.float64, Int64TensorType: np.int64}[kind]
    values = categories[known].astype(dtype)
    if len(np.unique(values)) != len(values):
        raise ValueError(f"two categories become equal as {np.dtype(dtype).name}")
    matches = graph.add("Equal", [column, graph.constant(values[None, :])])
    ones = graph.add("Cast", [matches], to=TensorProto.INT64)
    best = graph.add("ArgMax", [ones], axis=1, keepdims=0)
    any_match = graph.add("ReduceMax", [ones, graph.constant(np.array([1]))], keepdims=0)
    hit = graph.add("Cast", [any_match], to=TensorProto.BOOL)
    place = graph.add("Gather", [graph.constant(positions), best], axis=0)
    place = graph.add("Where", [hit, place, graph.constant(np.array([unknown]))])
    if dtype is np.int64:
        return place
    nan = graph.add("Reshape", [graph.add("IsNaN", [column]), graph.constant(np.array([-1]))])
    return graph.add("Where", [nan, graph.constant(np.array([count + 1])), place])


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def impute(scope: Any, operator: Any, container: Any) -> None:
    """Write the graph of a SimpleImputer, in the type of its output and without a detour over 32 bits."""
    graph, imputer = GraphWriter(scope, container), operator.raw_operator
    output = operator.outputs[0]
    kind = type(output.type)
    parts = []
    for given in operator.inputs:
        name = given.onnx_name
        if type(given.type) is not kind:
            name = graph.add("Cast", [name], to=_ELEMENT[kind])
        parts.append(name)
    values = parts[0] if len(parts) == 1 else graph.add("Concat", parts, axis=1)
    missing = _missing(graph, imputer.missing_values, values, kind)
    indicator = getattr(imputer, "indicator_", None)
    if indicator is not None:
        raise NotImplementedError("SimpleImputer with add_indicator=True has no ONNX form here")
    statistics = np.asarray(imputer.statistics_)
    if any(_is_nan(value) for value in statistics):
        raise NotImplementedError("SimpleImputer that drops columns without values has no ONNX form here")
    if missing is None:
        graph.add("Identity", [values], output.onnx_name)
        return
    dtype = {FloatTensorType: np.float32, DoubleTensorType: np.float64, Int64TensorType: np.int64}.get(
        kind, object
    )
    fill = graph.constant(statistics.astype(dtype)[None, :])
    graph.add("Where", [missing, fill, values], output.onnx_name)


def _missing(graph: GraphWriter, marker: Any, values: str, kind: Any) -> str | None:
    """Where values are missing, or None when they cannot be."""
    if kind is StringTensorType:
        text = MISSING_TEXT if marker is None or _is_nan(marker) else str(marker)
        return graph.add("Equal", [values, graph.constant(np.array([[text]], dtype=object))])
    if _is_nan(marker):
        return None if kind is Int64TensorType else graph.add("IsNaN", [values])
    if isinstance(marker, (int, float)):
        dtype = {FloatTensorType: np.float32, DoubleTensorType: np.float64, Int64TensorType: np.int64}[kind]
        return graph.add("Equal", [values, graph.constant(np.array([[marker]], dtype=dtype))])
    raise NotImplementedError(f"SimpleImputer with missing_values={marker!r} has no ONNX form for numbers")
