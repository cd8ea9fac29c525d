"""Where an ONNX file reaches outside itself: external data and operators of other libraries.

Reads protobuf's wire format alone, so that neither the onnx package nor the model's weights are loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mlflow_deploy.security.archives import leads_outside

_DOMAINS = (
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.ms.internal.nhwc",
)  # fmt: skip
_PYTHON_OPERATORS = ("PyOp", "PythonOp", "PythonOpGrad", "ATen")

_SCHEMA: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "function": {10: "=function-domain", 7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {4: "=operator", 7: "=domain", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "external"},
    "external": {1: "=key", 2: "=value"},
}
"""Message -> field number -> message inside, or the name of a text that is wanted."""
_DEPTH = 64


def audit_onnx(data: bytes | mmap.mmap, folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Rule and name of everything in a model that lies or is done elsewhere.

    Args:
        data: the file.
        folder: where it lies; the files that it names must be plain files in there.
    """
    with memoryview(data) as view:
        try:
            found = set(_walk(view, "model", 0))
        except (ValueError, IndexError, RecursionError) as error:
            yield "onnx-unreadable", str(error)
            return
    own = {text for what, text in found if what == "function-domain"}
    for what, text in sorted(found):
        if what == "location" and _is_elsewhere(text, folder):
            yield "onnx-external-data", text
        elif (what == "operator" and text in _PYTHON_OPERATORS) or (
            what == "domain" and text not in own and text not in _DOMAINS
        ):
            yield "onnx-custom-operator", text


def _is_elsewhere(location: str, folder: Path | None) -> bool:
    if leads_outside(location):
        return True
    return folder is not None and not (folder / location).resolve().is_relative_to(folder.resolve())


def _walk(data: memoryview, message: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEPTH:
        raise ValueError("its graphs are nested too deeply")
    texts: dict[str, str] = {}
    for number, content in _fields(data):
        inside = _SCHEMA[message].get(number, "")
        if not inside:
            continue
        if content is None:
            raise ValueError(f"field {number} of a {message} is no message")
        if inside.startswith("="):
            texts[inside[1:]] = str(content, "utf-8")
        else:
            yield from _walk(content, inside, depth + 1)
    if message == "external":
        if texts.get("key") == "location":
            yield "location", texts.get("value", "")
    else:
        yield from texts.items()


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and content of each field; numbers have no content."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        content: memoryview | None = None
        if tag & 7 == 0:
            _, place = _varint(data, place)
        elif tag & 7 == 2:
            length, place = _varint(data, place)
            content = data[place : place + length]
            place += length
        elif tag & 7 in (1, 5):
            place += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError(f"it has no field of kind {tag & 7}")
        if place > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, content


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has no end")
