"""Which columns or tensors of the signature feed which inputs of a form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_deploy.bundle import Feed
from mlflow_deploy.errors import ConversionError
from mlflow_deploy.serving.signature import NUMPY_TYPES, Column, Signature, Tensor

if TYPE_CHECKING:
    from mlflow_deploy.flavors.base import Port

_MISSING_TEXT = "nan"


def plan_feeds(form: str, ports: Sequence[Port], signature: Signature | None) -> tuple[Feed, ...]:
    """How the inputs of a form are made from a request.

    Columns go to the input of the same name, or all of them, in order, to the only input. Tensors go to the
    input of the same name, or the only one to the only input. Without a signature every input takes a tensor of
    its own name, and the only input takes the unnamed one.

    Raises:
        ConversionError: the inputs and the signature do not fit each other.
    """
    if not ports:
        raise ConversionError(f"The {form} model has no inputs")
    if signature is not None and signature.columns:
        return _from_columns(form, ports, signature.columns)
    tensors = signature.tensors if signature else ()
    if not tensors:
        return tuple(_tensor_feed(form, port, "" if len(ports) == 1 else port.name, None) for port in ports)
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(ports) == len(tensors) == 1:
        return (_tensor_feed(form, ports[0], tensors[0].name, tensors[0]),)
    missing = [port.name for port in ports if port.name not in by_name]
    if missing:
        raise _misfit(form, ports, [tensor.name or "(unnamed)" for tensor in tensors])
    return tuple(_tensor_feed(form, port, port.name, by_name[port.name]) for port in ports)


def _from_columns(form: str, ports: Sequence[Port], columns: Sequence[Column]) -> tuple[Feed, ...]:
    by_name = {str(column.name): column for column in columns}
    if all(port.name in by_name for port in ports):
        return tuple(_column_feed(form, port, (by_name[port.name],)) for port in ports)
    width = ports[0].shape[-1] if ports[0].shape else -1
    if len(ports) == 1 and width in (-1, len(columns)):
        return (_column_feed(form, ports[0], columns),)
    raise _misfit(form, ports, list(by_name))


def _column_feed(form: str, port: Port, columns: Sequence[Column]) -> Feed:
    if port.shape is not None and len(port.shape) != 2:
        raise ConversionError(
            f"Input {port.name!r} of the {form} model has shape {list(port.shape)}",
            why="columns make tables of shape [rows, columns]",
            hint="Give the input example as an array, or as a dict of arrays by name",
        )
    types = {NUMPY_TYPES.get(column.type, "") for column in columns}
    if port.dtype is None and len(types) > 1:
        raise ConversionError(
            f"Input {port.name!r} of the {form} model would mix columns of types {', '.join(sorted(types))}",
            hint="Give an input example whose columns have one type",
        )
    dtype = port.dtype or types.pop()
    names = tuple(str(column.name) for column in columns)
    missing = _MISSING_TEXT if dtype == "str" else None
    return Feed(name=port.name, dtype=dtype, columns=names, shape=(-1, len(names)), missing=missing)


def _tensor_feed(form: str, port: Port, name: str, tensor: Tensor | None) -> Feed:
    dtype = port.dtype or (tensor.dtype if tensor else None)
    if dtype is None:
        raise ConversionError(
            f"The type of input {port.name!r} is not known",
            why=f"the {form} form does not tell it",
            hint="Give a signature or an input_example",
        )
    shape = port.shape if port.shape is not None else (tensor.shape if tensor else (-1,))
    return Feed(name=port.name, dtype="str" if dtype == "object" else dtype, tensor=name, shape=shape)


def _misfit(form: str, ports: Sequence[Port], given: Sequence[str]) -> ConversionError:
    return ConversionError(
        f"The inputs of the {form} model are not those of its signature",
        why=f"the model takes {', '.join(port.name for port in ports)}; "
        f"the signature has {', '.join(given[:20])}{' ...' if len(given) > 20 else ''}",
        hint="Name the columns or tensors of the input example like the inputs of the model",
    )
