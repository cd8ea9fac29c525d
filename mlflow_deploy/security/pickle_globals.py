"""What a pickle would import and call, read from its opcodes: nothing is imported, built or executed.

Reads plain pickles, joblib files with arrays between the opcodes, compressed ones (zlib, gzip, bz2, xz), numpy
object arrays, and the members of zip archives such as PyTorch's .pt, .npz and .skops.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_deploy.security.errors import PickleUnreadable

LIMIT_BYTES = 8 << 30
"""More than this in one member after decompression is refused."""

_SUFFIXES = (
    ".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz",
    ".skops", ".p", ".sav",
)  # fmt: skip
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".z")
_UNKNOWN = "?"


@dataclass(frozen=True, order=True)
class Global:
    """A name that a pickle takes from a module: `module` and dotted `name`; '?' where it is computed."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def known(self) -> bool:
        """The pickle says which name it takes; an unknown one must count as the worst."""
        return _UNKNOWN not in (self.module, self.name)


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
                    _read_skops(archive.read(member), inner, found)
                elif is_pickle_file(Path(member.filename)):
                    _read_any(io.BytesIO(archive.read(member)), inner, found)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise PickleUnreadable(name, f"its archive is damaged or protected: {error}") from error


def _read_skops(schema: bytes, name: str, found: set[Global]) -> None:
    """skops files are no pickles; their schema names every class that is built."""
    try:
        pending = [json.loads(schema)]
    except ValueError as error:
        raise PickleUnreadable(name, "its schema is no JSON") from error
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(node.get("__module__"), str) and isinstance(node.get("__class__"), str):
                found.add(Global(node["__module__"], node["__class__"]))
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _read_npy(file: BinaryIO, name: str, found: set[Global]) -> None:
    head = file.read(8)
    width = 2 if head[6] == 1 else 4
    header = file.read(int.from_bytes(file.read(width), "little")).decode("latin1")
    # Records may hold objects too; their description is a list.
    if re.search(r"'descr':\s*'\|?O'|\[.*'\|?O[48]?'", header):
        _read_stream(file, name, found)


# --- opcodes -----------------------------------------------------------------------------------------------


class _Mark:
    """The mark on the stack that tuples and argument lists begin after."""


@dataclass
class _Made:
    """An object that a call would make: of which global, from what, with which state."""

    of: Any
    arguments: Any = ()
    state: Any = None


_MARK = _Mark()
_ARRAY_WRAPPERS = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")


def _read_stream(file: BinaryIO, name: str, found: set[Global]) -> None:
    """Pickles that follow each other to the end of the file, as cloudpickle and old PyTorch write them."""
    while True:
        _Reader(file, name, found).run()
        place = file.tell()
        following = file.read(1)
        # PyTorch's old format ends with raw weights, which no opcode protocol precedes.
        if following != b"\x80":
            return
        file.seek(place)


class _Reader:
    """One pickle's opcodes, followed with symbols in place of objects."""

    def __init__(self, file: BinaryIO, name: str, found: set[Global]) -> None:
        self._file, self._name, self._found = file, name, found
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow the pickle to its end and return the symbol of what it holds."""
        try:
            for code, argument, _ in pickletools.genops(self._file):
                if code.name == "STOP":
                    return self._stack[-1] if self._stack else None
                self._step(code, argument)
        except PickleUnreadable:
            raise
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            EOFError,
            OverflowError,
            RecursionError,
        ) as error:
            raise PickleUnreadable(self._name, f"its opcodes are damaged: {error}") from error
        raise PickleUnreadable(self._name, "it ends before it is complete")

    def _step(self, code: Any, argument: Any) -> None:
        handler = getattr(self, f"_on_{code.name.lower()}", None)
        if handler is not None:
            handler(argument)
        elif code.name in _CONSTANTS:
            self._stack.append(_CONSTANTS[code.name])
        elif code.name.startswith("PROTO") or code.name == "FRAME":
            return
        else:
            self._generic(code, argument)

    def _generic(self, code: Any, argument: Any) -> None:
        """An opcode of which only the effect on the stack matters."""
        if pickletools.markobject in code.stack_before:
            self._pop_to_mark()
            for _ in range(code.stack_before.index(pickletools.markobject)):
                self._stack.pop()
        else:
            for _ in code.stack_before:
                self._stack.pop()
        for _ in code.stack_after:
            self._stack.append(argument)

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def _take(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str)
        symbol = Global(module, name) if known else Global(_UNKNOWN, _UNKNOWN)
        self._found.add(symbol)
        self._stack.append(symbol)

    # Globals.

    def _on_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._take(module, name)

    def _on_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._take(module, name)

    def _on_inst(self, argument: str) -> None:
        arguments = self._pop_to_mark()
        self._on_global(argument)
        self._stack.append(_Made(self._stack.pop(), tuple(arguments)))

    def _on_ext1(self, argument: int) -> None:
        # The name stands in a registry of the process that loads it.
        self._found.add(Global("copyreg", f"extension {argument}"))
        self._stack.append(Global("copyreg", f"extension {argument}"))

    _on_ext2 = _on_ext4 = _on_ext1

    # Calls.

    def _on_obj(self, _: Any) -> None:
        kind, *arguments = self._pop_to_mark()
        self._stack.append(_Made(kind, tuple(arguments)))

    def _on_reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_Made(function, arguments))

    _on_newobj = _on_reduce

    def _on_newobj_ex(self, _: Any) -> None:
        self._stack.pop()
        self._on_reduce(None)

    def _on_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Made):
            target.state = state
            if isinstance(target.of, Global) and target.of.module in _ARRAY_WRAPPERS:
                self._skip_array(target.of, state)

    # Containers whose content matters: names, arguments and states.

    def _on_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _on_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _on_tuple1(self, _: Any) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _on_tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _on_tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _on_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _on_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._fill(items)

    def _on_setitem(self, _: Any) -> None:
        items = [self._stack.pop(-2), self._stack.pop()]
        self._fill(items)

    def _on_setitems(self, _: Any) -> None:
        self._fill(self._pop_to_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str):
                    target[key] = value

    def _on_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _on_pop(self, _: Any) -> None:
        self._stack.pop()

    def _on_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    # The memo.

    def _on_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _on_put(self, argument: int) -> None:
        self._memo[int(argument)] = self._stack[-1]

    _on_binput = _on_long_binput = _on_put

    def _on_get(self, argument: int) -> None:
        self._stack.append(self._memo[int(argument)])

    _on_binget = _on_long_binget = _on_get

    # joblib writes an array's bytes between the opcodes.

    def _skip_array(self, kind: Global, state: Any) -> None:
        if kind.name != "NumpyArrayWrapper":
            # joblib before 0.10 kept arrays in files of their own.
            return
        shape, dtype = state["shape"], state["dtype"]
        spelled = dtype.arguments[0] if isinstance(dtype, _Made) and dtype.arguments else None
        if not isinstance(spelled, str):
            raise PickleUnreadable(self._name, "an array has a type that is not spelled out")
        if spelled.lstrip("|=<>").startswith("O"):
            _Reader(self._file, self._name, self._found).run()
            return
        match = re.fullmatch(r"[|=<>]?([biufcSUVmMa?])(\d*)", spelled)
        if match is None:
            raise PickleUnreadable(self._name, f"an array has the type {spelled!r}, whose size is not known")
        size = int(match[2] or 1) * (4 if match[1] == "U" else 1)
        if match[1] == "V" and isinstance(dtype.state, tuple) and _holds_objects(dtype.state):
            _Reader(self._file, self._name, self._found).run()
            return
        for length in shape:
            size *= length
        if state.get("numpy_array_alignment_bytes") is not None:
            self._file.seek(self._file.read(1)[0], io.SEEK_CUR)
        self._file.seek(size, io.SEEK_CUR)


def _holds_objects(state: Any) -> bool:
    """Whether the state of a record's dtype names an object field."""
    if isinstance(state, _Made):
        spelled = state.arguments[0] if state.arguments else ""
        return (isinstance(spelled, str) and spelled.startswith("O")) or _holds_objects(state.state)
    if isinstance(state, dict):
        return any(_holds_objects(value) for value in state.values())
    return isinstance(state, tuple) and any(_holds_objects(value) for value in state)


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
