"""Tensors of the Open Inference Protocol: datatypes, JSON data, binary data, and the model's own types."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlflow_deploy.serving.backends.base import Model
from mlflow_deploy.serving.errors import InvalidValue
from mlflow_deploy.serving.values import Array

DATATYPES = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DATATYPES.items() if name != "BYTES"}
_KINDS = {"b": "b", "u": "bui", "i": "bui", "f": "uif"}
_MAX_DIMS = 32
_MAX_ELEMENTS = 1 << 48
_LENGTH = struct.Struct("<I")


def datatype(dtype: np.dtype[Any] | str) -> str:
    """The protocol's name of a numpy dtype; text and objects are BYTES."""
    if isinstance(dtype, str):
        return "BYTES" if dtype in ("str", "bytes") else datatype(np.dtype(dtype))
    return _NAMES.get(dtype, "BYTES")


def wire_dtype(name: str, given: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype.

    Raises:
        InvalidValue: the protocol has no such datatype, or this server does not take it.
    """
    if given not in DATATYPES:
        raise InvalidValue(f"Input {name!r} has a datatype that this server does not take")
    return DATATYPES[given]


def elements(name: str, shape: Sequence[int]) -> int:
    """Number of elements of a shape; Python's integers cannot overflow.

    Raises:
        InvalidValue: a dimension is negative or too large, or there are too many.
    """
    possible = len(shape) <= _MAX_DIMS and min(shape, default=0) >= 0
    # An empty tensor, too, must have sizes that its array can be told.
    if not possible or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise InvalidValue(f"Input {name!r} has an impossible shape")
    return math.prod(shape)


def from_json(name: str, given: str, shape: Sequence[int], data: Any) -> Array:
    """The tensor in JSON data, flat or nested.

    Raises:
        InvalidValue: datatype, shape and data do not fit each other.
    """
    dtype = wire_dtype(name, given)
    count = elements(name, shape)
    flat = _flatten(data)
    if len(flat) != count:
        raise InvalidValue(f"Input {name!r} has {len(flat)} elements, but its shape asks for {count}")
    if dtype.kind == "O":
        if not all(isinstance(value, str) for value in flat):
            raise InvalidValue(f"Input {name!r} is of datatype BYTES and takes text")
        array = np.empty(count, object)
        array[:] = flat
        return array.reshape(shape)
    try:
        kind = (
            np.array([0.0 if value is None else value for value in flat]).dtype.kind if flat else dtype.kind
        )
        array = np.array(flat, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidValue(f"Input {name!r} holds a value that is not {given}") from error
    if kind not in _KINDS[dtype.kind]:
        raise InvalidValue(f"Input {name!r} holds a value that is not {given}")
    return array.reshape(shape)


def _flatten(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidValue("The data of an input must be a list")
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise InvalidValue("The nested lists of an input are ragged")
        data = [value for part in data for value in part]
    flat: list[Any] = data
    return flat


def from_binary(name: str, given: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """The tensor in raw little-endian data.

    Raises:
        InvalidValue: datatype, shape and data do not fit each other.
    """
    dtype = wire_dtype(name, given)
    count = elements(name, shape)
    if dtype.kind == "O":
        return _texts(name, bytes(raw), count).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise InvalidValue(
            f"Input {name!r} has {len(raw)} bytes, but its shape and datatype ask for {count * dtype.itemsize}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _texts(name: str, raw: bytes, count: int) -> Array:
    values: list[str] = []
    at = 0
    try:
        while at < len(raw):
            (length,) = _LENGTH.unpack_from(raw, at)
            at += 4 + length
            if at > len(raw):
                raise InvalidValue(f"Input {name!r} ends in the middle of a text")
            values.append(raw[at - length : at].decode())
    except struct.error as error:
        raise InvalidValue(f"Input {name!r} ends in the middle of a text") from error
    except UnicodeDecodeError as error:
        raise InvalidValue(f"Input {name!r} holds text that is not UTF-8") from error
    if len(values) != count:
        raise InvalidValue(f"Input {name!r} has {len(values)} texts, but its shape asks for {count}")
    array = np.empty(count, object)
    array[:] = values
    return array


def to_binary(array: Array) -> bytes:
    """The tensor as raw little-endian data."""
    name = datatype(array.dtype)
    if name == "BYTES":
        return b"".join(_LENGTH.pack(len(text)) + text for text in map(_encoded, array.ravel().tolist()))
    return np.ascontiguousarray(array, DATATYPES[name]).tobytes()


def to_json(array: Array) -> list[Any]:
    """The tensor's elements, flat."""
    flat = array.ravel().tolist()
    return [_decoded(value) for value in flat] if datatype(array.dtype) == "BYTES" else flat


def _encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _decoded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class ModelInputs:
    """The inputs of one model, which requests are checked against."""

    def __init__(self, model: Model) -> None:
        self._known = {info.name: info for info in model.inputs}
        # input and dtype -> the dtype to cast to; None when it already fits
        self._casts: dict[tuple[str, np.dtype[Any]], np.dtype[Any] | None] = {}

    def match(self, tensors: Iterable[tuple[str, Array]]) -> dict[str, Array]:
        """The tensors by name, in the model's types.

        Raises:
            InvalidValue: an input is unknown, given twice, or of a type of another kind.
        """
        result: dict[str, Array] = {}
        for name, array in tensors:
            if name in result:
                raise InvalidValue(f"Input {name!r} is given twice")
            key = (name, array.dtype)
            if key not in self._casts:
                self._casts[key] = self._cast(*key)
            wanted = self._casts[key]
            result[name] = array if wanted is None else array.astype(wanted)
        return result

    def _cast(self, name: str, given: np.dtype[Any]) -> np.dtype[Any] | None:
        if name not in self._known:
            raise InvalidValue(f"The model has no input of that name; it has {', '.join(self._known)}")
        info = self._known[name]
        if info.dtype in ("str", "bytes", "object"):
            if given.kind != "O":
                raise InvalidValue(f"Input {name!r} needs datatype BYTES")
            return None
        wanted = np.dtype(info.dtype)
        if given.kind == "O" or not np.can_cast(given, wanted, "same_kind"):
            raise InvalidValue(f"Input {name!r} needs datatype {datatype(wanted)}")
        return None if given == wanted else wanted


def names(deployment: str, registered: str) -> tuple[str, ...]:
    """The model's names in the protocol, the first one is used in answers."""
    return tuple(dict.fromkeys(name for name in (deployment, registered) if name)) or ("model",)


def select(outputs: list[tuple[str, Array]], wanted: Sequence[str]) -> list[tuple[str, Array]]:
    """The wanted outputs in the wanted order; all when none is named.

    Raises:
        InvalidValue: an output is unknown.
    """
    if not wanted:
        return outputs
    known = dict(outputs)
    for name in wanted:
        if name not in known:
            raise InvalidValue(f"The model has no output of that name; it has {', '.join(known)}")
    return [(name, known[name]) for name in wanted]
