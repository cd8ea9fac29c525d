"""Follows a pickle's opcodes with symbols in place of objects: nothing is imported, built or executed."""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from mlflow_deploy.security.errors import PickleUnreadable

_UNKNOWN = "?"
_SMALL = 1 << 20


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


class _Mark:
    """The mark on the stack that tuples and argument lists begin after."""


@dataclass
class _Made:
    """An object that a call would make: of which global, from what, with which state."""

    of: Any
    arguments: Any = ()
    state: Any = None


_MARK = _Mark()
ARRAY_WRAPPERS = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")


class _Within:
    """A file that is never asked for more than it holds: the lengths in a pickle are its author's to choose."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.readline = file.tell, file.readline

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or what is left of them."""
        if size > _SMALL:
            place = self._file.tell()
            size = min(size, self._file.seek(0, io.SEEK_END) - place)
            self._file.seek(place)
        return self._file.read(size)


class Reader:
    """One pickle's opcodes, followed with symbols in place of objects."""

    def __init__(self, file: BinaryIO, name: str, found: set[Global], *, arrays: bool = True) -> None:
        self._file, self._name, self._found, self._arrays = file, name, found, arrays
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._frame_end = 0
        # Times that joblib's wrapper class was pushed, less those that it was made in the one usual way.
        self._odd_wrappers = 0
        self.calls = 0

    def run(self) -> Any:
        """Follow the pickle to its end and return the symbol of what it holds."""
        try:
            for code, argument, _ in pickletools.genops(cast("IO[bytes]", _Within(self._file))):
                if code.name == "STOP":
                    if self._arrays and self._odd_wrappers:
                        raise PickleUnreadable(self._name, "it makes joblib's arrays in an unusual way")
                    return self._stack[-1] if self._stack else None
                self._step(code, argument)
        except PickleUnreadable:
            raise
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
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
        elif code.name == "FRAME":
            self._frame_end = max(self._frame_end, self._file.tell() + argument)
        elif code.name == "PROTO":
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
        self._push(symbol)

    def _push(self, symbol: Any) -> None:
        self._odd_wrappers += _is_wrapper(symbol)
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
        self.calls += 1

    def _on_ext1(self, argument: int) -> None:
        # The name stands in a registry of the process that loads it.
        self._found.add(Global("copyreg", f"extension {argument}"))
        self._stack.append(Global("copyreg", f"extension {argument}"))

    _on_ext2 = _on_ext4 = _on_ext1

    # Calls.

    def _on_obj(self, _: Any) -> None:
        kind, *arguments = self._pop_to_mark()
        self._stack.append(_Made(kind, tuple(arguments)))
        self.calls += 1

    def _on_reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_Made(function, arguments))
        self.calls += 1

    def _on_newobj(self, _: Any) -> None:
        self._on_reduce(None)
        made = self._stack[-1]
        self._odd_wrappers -= made.arguments == () and _is_wrapper(made.of)

    def _on_newobj_ex(self, _: Any) -> None:
        self._stack.pop()
        self._on_reduce(None)

    def _on_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        self.calls += 1
        if isinstance(target, Global):
            # Classes and functions are shared by the whole process that loads this.
            raise PickleUnreadable(self._name, f"it changes {target} itself instead of an object")
        if isinstance(target, _Made):
            if self._arrays and _is_wrapper(target.of):
                if target.state is not None:
                    raise PickleUnreadable(self._name, "it reads an array of joblib twice")
                self._skip_array(state)
                # In the place of the wrapper joblib puts the array.
                self._stack[-1] = None
            target.state = state

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
                target[key if isinstance(key, str) else _UNKNOWN] = value

    def _on_dup(self, _: Any) -> None:
        self._push(self._stack[-1])

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
        self._push(self._memo[int(argument)])

    _on_binget = _on_long_binget = _on_get

    # joblib writes an array's bytes between the opcodes.

    def _skip_array(self, state: Any) -> None:
        shape, dtype, aligned = state["shape"], state["dtype"], state.get("numpy_array_alignment_bytes")
        if _UNKNOWN in state or not isinstance(shape, tuple) or not all(_is_length(n) for n in shape):
            raise PickleUnreadable(self._name, "an array has a shape that is not spelled out")
        if self._file.tell() < self._frame_end:
            # joblib reads arrays behind the frame, so that this reader would lose its place.
            raise PickleUnreadable(self._name, "an array begins inside a frame")
        size = self._item_size(dtype)
        if size is None:
            nested = Reader(self._file, self._name, self._found)
            nested.run()
            self.calls += nested.calls
            return
        for length in shape:
            size *= length
        if aligned is not None:
            padding = self._file.read(1)[0]
            if padding > _MOST_PADDING:
                raise PickleUnreadable(self._name, f"an array has {padding} bytes of padding")
            self._file.seek(padding, io.SEEK_CUR)
        self._file.seek(size, io.SEEK_CUR)

    def _item_size(self, dtype: Any) -> int | None:
        """Bytes of an array's item as numpy would count them; None for objects, which are a pickle."""
        plain = isinstance(dtype, _Made) and dtype.of == _DTYPE and isinstance(dtype.arguments, tuple)
        spelled = dtype.arguments[0] if plain and dtype.arguments else None
        if not isinstance(spelled, str):
            raise PickleUnreadable(self._name, "an array has a type that is not spelled out")
        if re.fullmatch(r"[|=<>]?O8?", spelled):
            return None
        match = re.fullmatch(r"[|=<>]?([biufcSUVmM])(\d{1,18})", spelled)
        if match is None:
            raise PickleUnreadable(self._name, f"an array has the type {spelled!r}, whose size is not known")
        size = int(match[2]) * (4 if match[1] == "U" else 1)
        if dtype.state is None:
            return size
        _, _, subarray, names, fields, stored, *_ = dtype.state
        if subarray is not None or stored not in ((size,) if match[1] in "SUV" else (-1, size)):
            raise PickleUnreadable(self._name, f"an array's type {spelled!r} contradicts itself")
        if names is None and fields is None:
            return size
        if match[1] != "V" or not isinstance(fields, dict) or _UNKNOWN in fields:
            raise PickleUnreadable(self._name, "an array's records are not spelled out")
        parts = [self._item_size(self._field(field)) for field in fields.values()]
        return None if None in parts else size

    def _field(self, field: Any) -> Any:
        """The type of a record's field, of one item where the field is an array itself."""
        kind = field[0]
        if isinstance(kind, _Made) and isinstance(kind.state, tuple) and isinstance(kind.state[2], tuple):
            return kind.state[2][0]
        return kind


def _is_wrapper(symbol: Any) -> bool:
    return (
        isinstance(symbol, Global) and symbol.module in ARRAY_WRAPPERS and symbol.name == "NumpyArrayWrapper"
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


_DTYPE = Global("numpy", "dtype")
_MOST_PADDING = 16
"""joblib aligns to 16 bytes, and no opcode is that small: pickle.load stops where such an array begins."""

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
