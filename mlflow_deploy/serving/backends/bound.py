"""Runs small calls of ONNX Runtime through buffers that are bound to the session once, not for each call."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from mlflow_deploy.serving.rows import PackedRow
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.values import Array

_MAX_SHAPES = 16
_MAX_BYTES = 1 << 14  # above, the copies into and out of the buffers are no longer small
_NUMBERS = "float double int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
_TYPES = {f"tensor({name})" for name in _NUMBERS.split()}

Plain = Callable[[Feeds, float], list[Any]]


class _Slot:
    """Buffers for calls of one shape, and the binding that names them to the session; one call at a time."""

    __slots__ = ("binding", "bound", "expires", "inputs", "memory", "options", "outputs", "spoiled", "values")

    def __init__(self, session: Any, feeds: Feeds, names: Sequence[str], results: Sequence[Array]) -> None:
        import onnxruntime as ort

        self.inputs = [np.empty(array.shape, array.dtype) for array in feeds.values()]
        self.memory = [array.data.cast("B") for array in self.inputs if array.size]
        # ONNX Runtime's int64 is numpy's long long, which is equal to numpy's int64 but not the same object.
        self.outputs = [np.empty(array.shape, array.dtype.str) for array in results]
        self.binding = session.io_binding()
        self.bound = getattr(self.binding, "_iobinding", self.binding)
        self.options = ort.RunOptions()
        self.expires = math.inf
        # A run that was ended leaves options behind that would end every later one, too.
        self.spoiled = False
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in (*self.inputs, *self.outputs)]
        for name, value in zip(feeds, self.values, strict=False):
            self.binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, self.values[len(feeds) :], strict=True):
            self.binding.bind_ortvalue_output(name, value)


def shapes(feeds: Feeds) -> tuple[tuple[int, ...], ...]:
    """The shapes of the inputs, in order."""
    return tuple([array.shape for array in feeds.values()])


def _plain(feeds: Feeds | PackedRow) -> Feeds:
    return feeds.feeds() if isinstance(feeds, PackedRow) else feeds


class BoundRuns:
    """Runs calls in slots, by the shapes of their inputs; a call that fits none is run without.

    Args:
        session: an onnxruntime.InferenceSession that computes on the CPU.
        outputs: names of the outputs that are wanted, in order.
        plain: runs a call without buffers; it is given the feeds and when they expire.
    """

    def __init__(self, session: Any, outputs: Sequence[str], plain: Plain) -> None:
        self._session = session
        # As in OnnxGraph: the wrapper's own checks cost several times the call of a small model.
        self._run_bound = getattr(session, "_sess", session).run_with_iobinding
        self._outputs = tuple(outputs)
        self._plain = plain
        self._free: dict[tuple[Any, ...], deque[_Slot]] = {}
        self._slots: set[_Slot] = set()
        tensors = (*session.get_inputs(), *session.get_outputs())
        self._bindable = {tensor.type for tensor in tensors} <= _TYPES

    def run(self, feeds: Feeds | PackedRow, expires: float) -> list[Any]:
        """The outputs, in order.

        Args:
            feeds: the inputs by name, or the only row of the only one.
            expires: `perf_counter()` after which `expire` may end the run.

        Raises:
            Exception: what ONNX Runtime raises, also for a run that was ended.
        """
        key = feeds.key if isinstance(feeds, PackedRow) else shapes(feeds)
        free = self._free.get(key)
        if not free:
            return self._run_and_learn(key, _plain(feeds), expires)
        try:
            slot = free.pop()
        except IndexError:
            # Another thread was faster.
            return self._run_and_learn(key, _plain(feeds), expires)
        if isinstance(feeds, PackedRow):
            slot.memory[0][:] = feeds.data
        else:
            for buffer, array in zip(slot.inputs, feeds.values(), strict=True):
                buffer[...] = array
        slot.expires = expires
        try:
            self._run_bound(slot.bound, slot.options)
        except Exception:
            self._slots.discard(slot)
            if perf_counter() > expires:
                raise
            return self._run_again(slot, _plain(feeds), expires)
        slot.expires = math.inf
        outputs = slot.outputs
        # The usual single output without the function call that a comprehension is.
        results = [outputs[0].copy()] if len(outputs) == 1 else [buffer.copy() for buffer in outputs]
        if slot.spoiled:
            self._slots.discard(slot)
        else:
            free.append(slot)
        return results

    def _run_and_learn(self, key: tuple[Any, ...], feeds: Feeds, expires: float) -> list[Any]:
        """Run without buffers, and make buffers for the next call of these shapes."""
        results = self._plain(feeds, expires)
        if not self._bindable or (key not in self._free and len(self._free) >= _MAX_SHAPES):
            return results
        if sum(array.nbytes for array in (*feeds.values(), *results)) <= _MAX_BYTES:
            slot = _Slot(self._session, feeds, self._outputs, results)
            self._slots.add(slot)
            self._free.setdefault(key, deque()).append(slot)
        return results

    def _run_again(self, slot: _Slot, feeds: Feeds, expires: float) -> list[Any]:
        """Run without buffers what failed in them."""
        results = self._plain(feeds, expires)
        if not slot.spoiled:
            # It succeeded: the shape of an output depends on the numbers, which no buffer can foresee.
            self._bindable = False
            self._free = {}
        return results

    def expire(self, now: float) -> None:
        """End the runs whose `expires` has passed."""
        for slot in tuple(self._slots):
            if now > slot.expires:
                slot.spoiled = True
                slot.options.terminate = True
