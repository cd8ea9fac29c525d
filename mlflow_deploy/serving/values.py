"""Turns JSON values into typed arrays by the rules of MLflow's schema enforcement, without pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflow_deploy.serving.errors import InvalidValue
from mlflow_deploy.serving.signature import NUMPY_TYPES, Tensor

Array = NDArray[Any]


def column_array(name: object, values: Sequence[Any], column_type: str) -> Array:
    """One column as an array of shape [rows].

    As MLflow's server does, numbers are cast to the column's type: text that spells a number is a number, a
    fraction loses its part after the point in an integer column, and a missing value is refused there. Text
    columns keep what was sent, missing values as None.

    Raises:
        InvalidValue: a value cannot be cast.
    """
    if column_type == "string":
        _refuse_nested(name, values)
        return _objects([None if _is_nan(value) else value for value in values])
    if column_type == "boolean":
        _refuse_nested(name, values)
        return np.array([bool(value) for value in values], np.bool_)
    try:
        array = np.array(values, NUMPY_TYPES[column_type])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidValue(f"Column {name!r} holds a value that is not of type {column_type}") from error
    if array.ndim != 1:
        raise InvalidValue(f"Column {name!r} is of type {column_type} and takes one value per row, not lists")
    return array


def tensor_array(value: Any, tensor: Tensor) -> Array:
    """A nested list as an array of the tensor's dtype and shape.

    Raises:
        InvalidValue: the value is ragged, has another shape, or cannot be cast.
    """
    try:
        array = np.array(value, object if tensor.dtype in ("str", "object") else tensor.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidValue(
            f"{tensor_label(tensor)} needs values of type {tensor.dtype} in a regular shape"
        ) from error
    check_shape(array, tensor)
    return array


def check_shape(array: Array, tensor: Tensor) -> None:
    """Raise InvalidValue unless the array has the tensor's shape."""
    shape, wanted = array.shape, tensor.shape
    if len(shape) == len(wanted) and shape[1:] == wanted[1:] and wanted[:1] in ((-1,), shape[:1]):
        return
    if len(shape) == len(wanted) and all(size in (-1, got) for size, got in zip(wanted, shape, strict=True)):
        return
    raise InvalidValue(
        f"{tensor_label(tensor)} has shape {list(array.shape)}, but the model takes {list(tensor.shape)}"
    )


def tensor_label(tensor: Tensor) -> str:
    """How a message names the tensor."""
    return f"Tensor {tensor.name!r}" if tensor.name else "The input tensor"


def fill_text(array: Array, missing: str, *, strict: bool) -> Array:
    """Text of shape [rows] with missing values replaced, as an object array.

    Args:
        strict: refuse what is not text, missing values too.

    Raises:
        InvalidValue: a value is not text.
    """
    if strict and not all(isinstance(value, str) for value in array):
        raise InvalidValue("The model takes text only here, no numbers and no missing values")
    return _objects([missing if _is_nan(value) else _text(value) for value in array.tolist()])


def fill_number(array: Array, missing: float) -> Array:
    """Numbers with NaN replaced."""
    if array.dtype.kind != "f":
        return array
    gaps = np.isnan(array)
    return np.where(gaps, np.asarray(missing, array.dtype), array) if gaps.any() else array


def _refuse_nested(name: object, values: Sequence[Any]) -> None:
    if any(isinstance(value, list | dict) for value in values):
        raise InvalidValue(f"Column {name!r} takes one value per row, not lists or objects")


def check_numbers(array: Array, accepts: str) -> None:
    """Raise InvalidValue when the numbers hold NaN or Infinity that the native model does not take.

    Args:
        accepts: `all`, `nan` or `finite`, as in the bundle.
    """
    if accepts == "all" or array.dtype.kind != "f" or np.isfinite(array).all():
        return
    if accepts == "finite" or np.isinf(array).any():
        raise InvalidValue("The model does not take missing values or Infinity here")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array
