"""Writes rows as Arrow streams, readable up to the last complete batch whatever happens to their writer."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nanoarrow as na
import numpy as np
from nanoarrow.ipc import StreamWriter

from mlflow_deploy.serving.values import Array

OPEN = "open"
STREAM = ".arrows"
_TYPES = {
    "?": na.bool_, "b": na.int8, "h": na.int16, "i": na.int32, "l": na.int64, "B": na.uint8, "H": na.uint16,
    "I": na.uint32, "L": na.uint64, "f": na.float32, "d": na.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of a batch.

    Attributes:
        name: its name.
        values: shape [rows]: numbers, truth values, datetime64[us] for moments in UTC, or text:
            objects that are str, or bytes that are ASCII.
        valid: which rows have a value, shape [rows]; None when all have.
    """

    name: str
    values: Array
    valid: Array | None = None


def make_batch(columns: Sequence[Column], rows: int) -> Any:
    """The columns as one Arrow struct array, which also hands itself over to pyarrow without a copy."""
    # A feature may have the name of an answer, which then holds.
    by_name = {column.name: column for column in columns}
    made = [_array(column, rows) for column in by_name.values()]
    schema = _struct(tuple(by_name), tuple(kind for kind, _ in made))
    return na.c_array_from_buffers(schema, rows, [], children=[array for _, array in made], move=True)


@lru_cache(maxsize=64)
def _struct(names: tuple[str, ...], kinds: tuple[str, ...]) -> Any:
    types = {name: _make_type(kind) for name, kind in zip(names, kinds, strict=True)}
    return na.c_schema(na.struct(types, nullable=False))


@lru_cache(maxsize=64)
def _type(kind: str) -> Any:
    return na.c_schema(_make_type(kind))


def _make_type(kind: str) -> Any:
    """The Arrow type of a numpy type's letter."""
    if kind == "O":
        return na.string()
    return na.timestamp("us", "UTC") if kind == "M" else _TYPES[kind]()


def _array(column: Column, rows: int) -> tuple[str, Any]:
    """The letter of a column's type, and its values as an Arrow array."""
    values, valid = column.values, column.valid
    buffers: list[Any] = [None if valid is None else np.packbits(valid, bitorder="little")]
    kind = values.dtype.char
    if kind == "S":
        kind = "O"
        buffers += _joined(values.tolist())
    elif kind == "O":
        texts = values.tolist()
        if valid is not None:
            texts = [text if there else "" for text, there in zip(texts, valid.tolist(), strict=True)]
        buffers += _text_buffers(texts)
    elif kind == "M":
        buffers.append(values.view(np.int64))
    elif kind == "?":
        buffers.append(np.packbits(values, bitorder="little"))
    else:
        if kind == "e":
            values = values.astype(np.float32)
        elif kind not in _TYPES:
            # Such as numpy's long long, which is int64 under another letter.
            values = values.astype(np.dtype(values.dtype.str) if values.dtype.kind in "iu" else np.float64)
        kind = values.dtype.char
        buffers.append(np.ascontiguousarray(values))
    return kind, na.c_array_from_buffers(_type(kind), rows, buffers)


def _text_buffers(texts: list[str]) -> tuple[Array, bytes]:
    joined = "".join(texts)
    if joined.isascii():
        offsets = np.zeros(len(texts) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, texts), np.int32, len(texts)), out=offsets[1:])
        return offsets, joined.encode()
    # Half of a surrogate pair cannot be UTF-8; JSON may send it.
    return _joined([text.encode(errors="replace") for text in texts])


def _joined(texts: list[bytes]) -> tuple[Array, bytes]:
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, texts), np.int32, len(texts)), out=offsets[1:])
    return offsets, b"".join(texts)


def make_folder(path: Path) -> None:
    """Make a folder that the group may change too: a later revision may run as another user of the group."""
    if not path.is_dir():
        make_folder(path.parent)
        try:
            path.mkdir(mode=0o770)
        except FileExistsError:
            return
        path.chmod(0o770)


class StreamFiles:
    """Streams in a folder, one after the other: a new one by size, by age, and when the columns change.

    A file that is being written is locked, so that whoever seals files can tell it from one that a killed
    writer left. A batch that cannot be written whole is cut off again.

    Args:
        folder: gets the files in its folder `open`.
        max_bytes: size at which a new file begins.
        max_seconds: age at which a file is closed by `tick`.
    """

    def __init__(self, folder: Path, max_bytes: int, max_seconds: float) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._fd = -1
        self._path = Path()
        self._size = 0
        self._opened = 0.0
        self._schema: tuple[tuple[str, str], ...] = ()

    def write(self, columns: Sequence[Column], rows: int) -> None:
        """Append a batch, which the kernel has when this returns.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        # Both forms of text are one type in a file.
        schema = tuple((column.name, column.values.dtype.char.replace("S", "O")) for column in columns)
        if self._fd >= 0 and (schema != self._schema or self._size >= self._max_bytes):
            self.close()
        first = self._fd < 0
        sink = io.BytesIO()
        writer = StreamWriter.from_writable(sink)
        writer.write_array(make_batch(columns, rows), write_schema=first)
        writer.release()
        if first:
            self._open(schema)
        self._append(sink.getbuffer())
        if first:
            # Only now others see it: locked, and with its columns and a batch.
            self._path.rename(self._path.with_name(self._path.name.removeprefix(".")))

    def tick(self) -> None:
        """Close the file when it is old enough."""
        if self._fd >= 0 and time.monotonic() - self._opened >= self._max_seconds:
            self.close()

    def close(self) -> None:
        """End the file, when there is one; the next batch begins a new one."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.write(fd, b"\xff\xff\xff\xff\x00\x00\x00\x00")
        finally:
            os.close(fd)

    # --- details ---

    def _open(self, schema: tuple[tuple[str, str], ...]) -> None:
        folder = self.folder / OPEN
        make_folder(folder)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._path = folder / f".{stamp}-{os.getpid()}-{secrets.token_hex(4)}{STREAM}"
        self._fd = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640
        )
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._size, self._opened, self._schema = 0, time.monotonic(), schema

    def _append(self, data: memoryview) -> None:
        try:
            left = data
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            self._give_up()
            raise
        self._size += len(data)

    def _give_up(self) -> None:
        """Leave the file as it was before the batch that failed."""
        fd, self._fd = self._fd, -1
        try:
            os.ftruncate(fd, self._size)
        finally:
            os.close(fd)
            if not self._size:
                self._path.unlink(missing_ok=True)
