"""What Keras and TensorFlow files would run or reach: Lambda layers, foreign functions, file operators."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

_MODULES = (
    "keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints",
    "keras.optimizers", "keras.optimizers.schedules", "keras.losses", "keras.metrics", "keras.activations",
)  # fmt: skip
_MODELS = {
    "keras.src.models.functional": ("Functional",),
    "keras.src.models.sequential": ("Sequential",),
    "keras.src.engine.functional": ("Functional",),
    "keras.src.engine.sequential": ("Sequential",),
}
_RUNS_CODE = (
    "Lambda",
    "__lambda__",
    "TFOpLambda",
    "SlicingOpLambda",
    "get_file",
    "TorchModuleWrapper",
    "TFSMLayer",
)
_OPERATORS = (
    "EagerPyFunc", "ImmutableConst", "MatchingFiles", "PyFunc", "PyFuncStateless", "ReadFile", "WriteFile",
)  # fmt: skip


def audit_keras_config(text: str | bytes) -> Iterator[tuple[str, str]]:
    """Rule and name of everything in a model's JSON configuration that brings or names code."""
    try:
        pending = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        yield "keras-unreadable", f"its configuration is no JSON: {error}"
        return
    seen: set[tuple[str, str]] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            seen.update(_of_object(node))
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    yield from sorted(seen)


def _of_object(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, module, registered = node.get("class_name"), node.get("module"), node.get("registered_name")
    if name in _RUNS_CODE:
        yield "keras-lambda" if "ambda" in str(name) else "keras-foreign-code", str(name)
    elif isinstance(name, str) and module is not None and not _is_keras(str(module), name):
        yield "keras-foreign-code", f"{module}.{name}"
    if isinstance(registered, str) and ">" in registered and not registered.startswith("Keras>"):
        yield "keras-foreign-code", registered


def _is_keras(module: str, name: str) -> bool:
    return module in _MODULES or name in _MODELS.get(module, ())


def audit_hdf5(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Rule and name of what an HDF5 file of Keras would run, or takes from other files."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        yield "keras-unreadable", "HDF5 files are not read without the package h5py"
        return
    try:
        with h5py.File(file, "r") as opened:
            config = opened.attrs.get("model_config")
            if config is not None:
                yield from audit_keras_config(config)
            yield from _links(h5py, opened)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError) as error:
        yield "keras-unreadable", str(error)


def _links(h5py: Any, opened: Any) -> Iterator[tuple[str, str]]:
    pending, seen = [opened], set()
    while pending:
        group = pending.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                yield "hdf5-external", f"{group.name}/{name} -> {link.filename}"
            elif isinstance(link, h5py.HardLink):
                item = group[name]
                if isinstance(item, h5py.Group):
                    pending.append(item)
                elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                    yield "hdf5-external", f"{group.name}/{name}"


def audit_saved_model(data: bytes) -> Iterator[tuple[str, str]]:
    """Rule and name of TensorFlow operators that reach files or Python, and of Lambda layers."""
    for name in _OPERATORS:
        # The second field of a node, with its length, is its operator.
        if b"\x12" + bytes([len(name)]) + name.encode() in data:
            yield "tensorflow-operator", name
    if re.search(rb'"class_name":\s*"(?:Lambda|__lambda__)"', data):
        yield "keras-lambda", "Lambda"
