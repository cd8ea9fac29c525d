"""ONNX models of MLflow's built-in flavor: the graph as it was logged, with inputs and outputs described."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnx
from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Feed, Servable
from mlflow_deploy.conversion import networks
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.graph import MISSING_TEXT
from mlflow_deploy.conversion.native import NativeModel

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TEXT, Capability.TENSOR, Capability.TENSORS})

_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(bool)": "bool", "tensor(string)": "str",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
}  # fmt: skip


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    given = {item.name: item.type for item in native.raw().get_inputs()}
    if native.columns and len(given) != 1:
        return (
            f"its graph has {len(given)} inputs, which MLflow's onnx flavor does not feed from columns; "
            "log it with a mapping of arrays as input_example="
        )
    named = {tensor.name for tensor in native.tensors if tensor.name}
    if named and named != given.keys():
        return (
            f"its signature names {sorted(named)}, its graph {sorted(given)}; log it with the graph's names"
        )
    for name, kind in given.items():
        if kind not in _TYPES:
            return f"input {name!r} of its graph has type {kind}, which the server cannot feed"
    why = networks.refuse_signature(native, columns=True) or networks.refuse_answers(native)
    return why and f"{why} (MLflow's onnx flavor flattens outputs of several columns for a DataFrame)"


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The graph itself."""
    yield Candidate(label="as logged", build=partial(_build, native, answer))


def _build(native: NativeModel, answer: Answer, folder: Path) -> Servable:
    source = native.folder / str(native.meta.flavors["onnx"]["data"])
    file = source / "model.onnx" if source.is_dir() else source
    shutil.copyfile(file, folder / file.name)
    for name in _beside(file):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.parent / name, folder / name)
    names = tuple(answer.arrays)
    declared = {item.name: len(item.shape) for item in native.raw().get_outputs()}
    outputs = tuple(
        structs.replace(
            output,
            column=output.name,
            dtype="str" if answer.arrays[output.name].dtype.kind in "OUS" else output.dtype,
            squeeze=declared[output.name] > answer.arrays[output.name].ndim,
        )
        for output in networks.outputs(answer, names)
    )
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{file.name}",
        feeds=_feeds(native),
        outputs=outputs,
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=("numpy", "onnxruntime>=1.23"),
    )


def _feeds(native: NativeModel) -> tuple[Feed, ...]:
    given = {item.name: _TYPES[item.type] for item in native.raw().get_inputs()}
    if not native.tensors:
        ((name, dtype),) = given.items()
        columns = tuple(column.name for column in native.columns)
        return (Feed(name=name, dtype=dtype, columns=columns, shape=(-1, len(columns))),)
    feeds = []
    for tensor in native.tensors:
        name = tensor.name or next(iter(given))
        missing = MISSING_TEXT if given[name] == "str" else None
        feeds.append(
            Feed(name=name, dtype=given[name], tensor=tensor.name, shape=tensor.shape, missing=missing)
        )
    return tuple(feeds)


def _beside(file: Path) -> list[str]:
    """Files beside the graph that hold its weights.

    Raises:
        ValueError: one lies outside the model's folder.
    """
    model = onnx.load(file, load_external_data=False)
    found = {
        entry.value
        for item in model.graph.initializer
        for entry in item.external_data
        if entry.key == "location"
    }
    for name in found:
        if not (file.parent / name).resolve().is_relative_to(file.parent.resolve()):
            raise ValueError(f"the graph keeps weights at {name}, outside the model's folder")
    return sorted(found)
