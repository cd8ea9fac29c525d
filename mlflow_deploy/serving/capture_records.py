"""Keeps requests of one row as bytes of one length until they are written: little memory, few objects."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_deploy.serving.rows import PackedRow
from mlflow_deploy.serving.values import Array

_ID_CHARACTERS = 40  # those of this server have half of it, a UUID has 36
_HEAD = struct.Struct(f"={_ID_CHARACTERS}sdf")


@dataclass(frozen=True)
class Decoded:
    """Requests of one row each, as arrays.

    Attributes:
        ids: request ids, ASCII.
        arrived: `time.perf_counter()` at each one's arrival.
        latencies: milliseconds to each one's answer.
        given: the graph's only input by its name, shape [requests, columns].
        answers: the graph's outputs, each of shape [requests, ...].
    """

    ids: Array
    arrived: Array
    latencies: Array
    given: dict[str, Array]
    answers: list[Array]


class RowRecords:
    """Makes a record of an answered request and arrays of many records.

    The first request tells the types and shapes of the outputs. What differs from them has no record.
    """

    def __init__(self) -> None:
        self._layout: np.dtype[Any] | None = None
        self._size = -1
        self._name = ""

    def pack(self, request_id: str, arrived: float, seconds: float, given: Any, answer: Any) -> bytes | None:
        """A request's record; None when it has no form of records.

        Args:
            request_id: its id.
            arrived: `time.perf_counter()` at its arrival.
            seconds: from its arrival to its answer.
            given: `Call.asked`.
            answer: `Call.answer`.
        """
        if type(given) is not PackedRow or len(request_id) > _ID_CHARACTERS:
            return None
        if self._size < 0:
            self._learn(given, answer)
        if not self._size:
            return None
        try:
            head = _HEAD.pack(request_id.encode("ascii"), arrived, seconds * 1e3)
            record = b"".join((head, given.data, *answer))
        except (TypeError, ValueError):
            return None  # An id that is not ASCII, or an output that does not lie in one piece.
        return record if len(record) == self._size else None

    def unpack(self, records: Sequence[bytes]) -> Decoded:
        """What records hold."""
        table = np.frombuffer(b"".join(records), self._layout)
        return Decoded(
            ids=table["id"],
            arrived=table["arrived"],
            latencies=table["latency"],
            given={self._name: table["given"]},
            answers=[table[f"answer{at}"] for at in range(len(table.dtype.names or ()) - len(_FIELDS) - 1)],
        )

    def _learn(self, given: PackedRow, answer: Any) -> None:
        if type(answer) is not list or not all(map(_plain, answer)):
            self._size = 0
            return
        packer = given.packer
        fields = [*_FIELDS, ("given", packer.dtype, packer.key[0][1:])]
        fields += [(f"answer{at}", array.dtype, array.shape[1:]) for at, array in enumerate(answer)]
        layout = np.dtype(fields)
        self._layout, self._name = layout, packer.name
        # Last: other threads look at it first.
        self._size = layout.itemsize


_FIELDS: list[Any] = [("id", f"S{_ID_CHARACTERS}"), ("arrived", np.float64), ("latency", np.float32)]


def _plain(array: Any) -> bool:
    """Whether an output of one row is numbers, whose bytes say all of it."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype.kind in "biuf"
        and array.ndim > 0
        and len(array) == 1
        and array.flags.c_contiguous
    )
