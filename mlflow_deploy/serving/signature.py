"""The MLflow signature in a bundle, read without MLflow: columns, tensors and params."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMPY_TYPES = {
    "boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64",
    "string": "str", "binary": "bytes", "datetime": "datetime64[ns]",
}  # fmt: skip
"""numpy dtype of each MLflow column type; text and bytes are named by their Python type."""


@dataclass(frozen=True)
class Column:
    """One column of a DataFrame signature; `type` is MLflow's name, `name` None in an unnamed signature."""

    name: str | None
    type: str
    required: bool = True


@dataclass(frozen=True)
class Tensor:
    """One tensor; `name` is the empty string for the unnamed one, -1 in `shape` is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Param:
    """One inference parameter; `shape` None means a scalar."""

    name: str
    type: str
    default: Any
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and params of a model. Inputs are columns or tensors, never both."""

    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    output_columns: tuple[Column, ...] = ()
    output_tensors: tuple[Tensor, ...] = ()
    params: tuple[Param, ...] = ()

    @property
    def named(self) -> bool:
        """The columns have names."""
        return bool(self.columns) and self.columns[0].name is not None


def parse_signature(document: Mapping[str, Any] | None) -> Signature | None:
    """The signature in `signature.json`; None when the model has none."""
    if not document:
        return None
    columns, tensors = _specs(document.get("inputs"))
    output_columns, output_tensors = _specs(document.get("outputs"))
    return Signature(
        columns=columns,
        tensors=tensors,
        output_columns=output_columns,
        output_tensors=output_tensors,
        params=tuple(_param(item) for item in document.get("params") or ()),
    )


def _specs(items: list[dict[str, Any]] | None) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    columns: list[Column] = []
    tensors: list[Tensor] = []
    for item in items or ():
        if item["type"] == "tensor":
            spec = item["tensor-spec"]
            tensors.append(Tensor(item.get("name") or "", spec["dtype"], tuple(spec["shape"])))
        else:
            columns.append(Column(item.get("name"), item["type"], item.get("required", True)))
    return tuple(columns), tuple(tensors)


def _param(item: dict[str, Any]) -> Param:
    shape = item.get("shape")
    return Param(item["name"], item["type"], item.get("default"), tuple(shape) if shape else None)
