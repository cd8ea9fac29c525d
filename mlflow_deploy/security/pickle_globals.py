"""What a pickle would import and call, read from its opcodes: nothing is imported, built or executed.

Reads plain pickles, joblib files with arrays between the opcodes, compressed ones (zlib, gzip, bz2, xz), numpy
object arrays, and the members of zip archives such as PyTorch's .pt, .npz and .skops.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_deploy.security.errors import PickleUnreadable
from mlflow_deploy.security.pickle_reader import ARRAY_WRAPPERS, Global, Reader

__all__ = [
    "Global",
    "PickleReading",
    "is_pickle_file",
    "npy_holds_objects",
    "pickle_globals",
    "read_pickle",
    "skops_globals",
]

LIMIT_BYTES = 8 << 30
"""More than this in one member after decompression is refused."""

_SUFFIXES = (
    ".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz",
    ".skops", ".p", ".sav",
)  # fmt: skip
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".z")


@dataclass(frozen=True)
class PickleReading:
    """What was read of a file that may be a pickle.

    Attributes:
        globals: names that loading would import, up to where reading ended.
        calls: how many calls loading would make up to there.
        problem: why reading ended early; empty when the whole pickle was followed.
        trailing: bytes follow its end that are no pickle.
        pickles: how many pickles follow each other.
    """

    globals: frozenset[Global]
    calls: int
    problem: str
    trailing: bool
    pickles: int


def pickle_globals(source: Path | bytes) -> frozenset[Global]:
    """All globals that loading a file would import, nested pickles included.

    Args:
        source: a pickle file in any of the forms above, or its bytes.

    Raises:
        PickleUnreadable: the file cannot be read to its end, so there may be more.
        OSError: the file cannot be opened.
    """
    name = source.name if isinstance(source, Path) else "in memory"
    found: set[Global] = set()
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        _read_any(file, name, found)
    return frozenset(found)


def read_pickle(file: BinaryIO, name: str) -> PickleReading:
    """Follow an uncompressed pickle as `pickle.load` and, where it has joblib's arrays, as joblib would too.

    Loading acts on each opcode as it comes, so the names before a damaged place count as much as others.

    Raises:
        OSError: the file cannot be read.
    """
    found: set[Global] = set()
    calls, pickles, problem = 0, 0, ""
    start = file.tell()
    following = b"\x80"
    while following == b"\x80":
        reader = Reader(file, name, found)
        try:
            reader.run()
        except PickleUnreadable as error:
            problem = error.why
        calls, pickles = calls + reader.calls, pickles + 1
        if problem:
            return PickleReading(frozenset(found), calls, problem, False, pickles)
        following = file.read(1)
        file.seek(-len(following), io.SEEK_CUR)
    if any(item.module in ARRAY_WRAPPERS for item in found):
        # What joblib takes for an array's bytes, pickle.load takes for opcodes.
        file.seek(start)
        plain = Reader(file, name, found, arrays=False)
        with contextlib.suppress(PickleUnreadable):
            plain.run()
        calls += plain.calls
    return PickleReading(frozenset(found), calls, "", bool(following), pickles)


def is_pickle_file(path: Path) -> bool:
    """Whether a file's name says that it may hold a pickle."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _SUFFIXES


# --- containers --------------------------------------------------------------------------------------------


def _read_any(file: BinaryIO, name: str, found: set[Global]) -> None:
    head = file.read(8)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        _read_zip(file, name, found)
    elif head.startswith(b"\x93NUMPY"):
        _read_npy(file, name, found)
    elif (opened := _decompressed(file, head, name)) is not None:
        _read_any(opened, name, found)
    elif head[:1] in (
        b"\x80",
        b"c",
        b"(",
        b"]",
        b"}",
        b")",
        b"N",
        b"I",
        b"S",
        b"V",
        b"K",
        b"J",
        b"i",
        b"d",
        b"l",
    ):
        _read_stream(file, name, found)
    else:
        raise PickleUnreadable(name, "it begins as no pickle, archive or compressed file does")


def _decompressed(file: BinaryIO, head: bytes, name: str) -> BinaryIO | None:
    """The content of a compressed file, None when it is not compressed."""
    openers: list[tuple[bytes, Any]] = [
        (b"\x1f\x8b", gzip.open),
        (b"BZh", bz2.BZ2File),
        (b"\xfd7zXZ", lzma.LZMAFile),
        (b"\x5d\x00\x00", lzma.LZMAFile),
    ]
    for magic, opener in openers:
        if head.startswith(magic):
            return _bounded(_blocks(opener(file)), name)
    if len(head) > 1 and head[0] == 0x78 and int.from_bytes(head[:2]) % 31 == 0:
        return _bounded(_inflated(file), name)
    if head.startswith(b"\x04\x22\x4d\x18"):
        raise PickleUnreadable(name, "it is compressed with LZ4, which is not read here")
    return None


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    while block := file.read(1 << 20):
        while block:
            yield inflate.decompress(block, 1 << 20)
            block = inflate.unconsumed_tail
    yield inflate.flush()
    if not inflate.eof:
        raise EOFError("the compressed data is cut off")


def _bounded(blocks: Iterator[bytes], name: str) -> BinaryIO:
    content = io.BytesIO()
    try:
        for block in blocks:
            if content.tell() + len(block) > LIMIT_BYTES:
                raise PickleUnreadable(
                    name, f"it grows beyond {LIMIT_BYTES >> 30} GiB when it is decompressed"
                )
            content.write(block)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise PickleUnreadable(name, f"its compression is damaged: {error}") from error
    content.seek(0)
    return content


def _read_zip(file: BinaryIO, name: str, found: set[Global]) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                inner = f"{name}:{member.filename}"
                if member.file_size > LIMIT_BYTES:
                    raise PickleUnreadable(inner, f"it is larger than {LIMIT_BYTES >> 30} GiB")
                if member.filename.rpartition("/")[2] == "schema.json":
                    found |= skops_globals(archive.read(member), inner)
                elif is_pickle_file(Path(member.filename)):
                    _read_any(io.BytesIO(archive.read(member)), inner, found)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise PickleUnreadable(name, f"its archive is damaged or protected: {error}") from error


def skops_globals(schema: bytes, name: str) -> frozenset[Global]:
    """Every class and function that a skops file builds, as its schema names them: it is no pickle.

    Raises:
        PickleUnreadable: the schema is damaged.
    """
    found: set[Global] = set()
    try:
        pending = [json.loads(schema)]
    except (ValueError, RecursionError) as error:
        raise PickleUnreadable(name, "its schema is no JSON") from error
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(node.get("__module__"), str) and isinstance(node.get("__class__"), str):
                found.add(Global(node["__module__"], node["__class__"]))
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    return frozenset(found)


def _read_npy(file: BinaryIO, name: str, found: set[Global]) -> None:
    head = file.read(8)
    width = 2 if head[6:7] == b"\x01" else 4
    if npy_holds_objects(file.read(int.from_bytes(file.read(width), "little")), name):
        _read_stream(file, name, found)


def npy_holds_objects(header: bytes, name: str) -> bool:
    """Whether a numpy file is a pickle after its header; records may hold objects too.

    Raises:
        PickleUnreadable: the header is damaged.
    """
    try:
        pending = [ast.literal_eval(header.decode("latin1").strip())["descr"]]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise PickleUnreadable(name, f"its header is damaged: {error}") from error
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            # A field is (name, type) or (name, type, shape).
            pending.extend(field[1] if isinstance(field, tuple) and len(field) > 1 else "?" for field in part)
        elif isinstance(part, tuple) and part:
            pending.append(part[0])
        elif not (isinstance(part, str) and re.fullmatch(r"[|=<>]?[biufcSUVmM]\d+(\[\d*\w+\])?", part)):
            return True
    return False


def _read_stream(file: BinaryIO, name: str, found: set[Global]) -> None:
    """Pickles that follow each other to the end of the file, as cloudpickle and old PyTorch write them."""
    while True:
        Reader(file, name, found).run()
        place = file.tell()
        following = file.read(1)
        # PyTorch's old format ends with raw weights, which no opcode protocol precedes.
        if following != b"\x80":
            return
        file.seek(place)
