"""Records requests with their answers on demand, for whoever compares two revisions.

All workers share one anonymous mapping that the parent makes before it forks, so whichever worker is asked can
read what all of them recorded. Each worker writes into a ring of its own; nothing is locked between processes.
Nothing is recorded, and no memory is touched, until somebody asks, nor from `LEASE_SECONDS` after the last time
on, so that a reader that was killed leaves nothing switched on.

The mapping, all numbers little-endian::

    0    float64 time.monotonic() until which recording is on, float64 share of the request ids
    64   for each worker: uint64 written, oldest, records, oversized; then the ring
"""

from __future__ import annotations

import mmap
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

RING_BYTES = 8 * 1024 * 1024
"""Memory of one worker's ring; touched only while it records."""
LEASE_SECONDS = 30.0
"""How long recording goes on after the last time somebody asked."""
MAX_ANSWER_BYTES = 256 * 1024
"""Largest answer that is recorded; larger ones are counted."""
MAX_REQUEST_BYTES = 64 * 1024
"""Largest request whose body is kept; of a larger one only the digest is."""
_MAX_REPLY_BYTES = 4 * 1024 * 1024
_HEAD = 64
_SLOT = _HEAD + RING_BYTES
_CONTROL = struct.Struct("<dd")
_STATE = struct.Struct("<QQQQ")
_FRAME = struct.Struct("<II")  # length and CRC of the record that follows


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One request and its answer.

    Attributes:
        number: counts this worker's records from 0, so that a gap shows what was lost.
        id: the request id.
        path: address that was asked.
        status: of the answer, as in HTTP.
        seconds: from the request's arrival to its answer.
        digest: CRC-32 of the request's body; the same request has the same one in every revision.
        request: the request's body as it was sent; empty when it was too large to keep.
        request_type: its Content-Type and Content-Encoding, joined by a space.
        answer: the answer's body.
        answer_type: the same of the answer.
        head: length of the JSON before binary tensors in the answer, 0 without any.
    """

    number: int
    id: str
    path: str
    status: int
    seconds: float
    digest: int
    request: bytes
    request_type: str
    answer: bytes
    answer_type: str
    head: int = 0


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader asks for.

    Attributes:
        share: of the request ids that shall be recorded from now on, 0 to 1; every server takes the same ids.
        after: `boot` -> `after` of the last replies, of this server and maybe of others.
    """

    share: float
    after: dict[str, list[tuple[int, int]]] = {}


class Reply(msgspec.Struct):
    """What was recorded since the last reply.

    Attributes:
        boot: changes when the server was started again, which empties the rings.
        after: how far each worker's ring was read: bytes and records.
        records: at most a few MiB of them; the rest comes with the next reply.
        lost: records that were overwritten before they were read.
        oversized: answers that were too large to be recorded, since the server was started.
    """

    boot: str
    after: list[tuple[int, int]]
    records: list[Record]
    lost: int
    oversized: int


class SharedRecorder:
    """The mapping with the rings of all workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.boot = secrets.token_hex(8)
        self._map = mmap.mmap(-1, _HEAD + workers * _SLOT)

    def control(self) -> tuple[float, float]:
        """(time.monotonic() until which recording is on, share of the ids)."""
        until, share = _CONTROL.unpack_from(self._map, 0)
        return until, share

    def switch(self, share: float) -> None:
        """Record this share of the ids until `LEASE_SECONDS` from now; 0 stops it."""
        until = time.monotonic() + LEASE_SECONDS if share > 0 else 0.0
        _CONTROL.pack_into(self._map, 0, until, share)

    def state(self, worker: int) -> tuple[int, int, int, int]:
        """(bytes written, start of the oldest record, records, oversized answers) of a worker's ring."""
        written, oldest, records, oversized = _STATE.unpack_from(self._map, self._start(worker) - _HEAD)
        return written, oldest, records, oversized

    def set_state(self, worker: int, written: int, oldest: int, records: int, oversized: int) -> None:
        """Only the worker itself calls it."""
        _STATE.pack_into(self._map, self._start(worker) - _HEAD, written, oldest, records, oversized)

    def read_at(self, worker: int, position: int, size: int) -> bytes:
        """Bytes of a ring, which begins anew at its end."""
        start, at = self._start(worker), position % RING_BYTES
        first = min(size, RING_BYTES - at)
        return self._map[start + at : start + at + first] + self._map[start : start + size - first]

    def write_at(self, worker: int, position: int, data: bytes) -> None:
        """The same for writing."""
        start, at = self._start(worker), position % RING_BYTES
        first = min(len(data), RING_BYTES - at)
        self._map[start + at : start + at + first] = data[:first]
        self._map[start : start + len(data) - first] = data[first:]

    def release(self, worker: int) -> None:
        """Give the pages of a ring back to the machine; only the worker itself calls it."""
        begin = -(-self._start(worker) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._start(worker) + RING_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_REMOVE, begin, end - begin)

    def drain(self, order: Order) -> Reply:
        """Switch recording and read what was recorded since the reader's last reply; any worker may."""
        after = order.after.get(self.boot)
        self.switch(order.share)
        reply = Reply(self.boot, [], [], 0, 0)
        for worker in range(self.workers):
            written, _, records, oversized = self.state(worker)
            reply.oversized += oversized
            # A first reader wants what comes from now on, not what another one left.
            position, number = after[worker] if after and worker < len(after) else (written, records)
            reply.after.append(self._read(worker, position, number, reply))
        return reply

    # --- details ---

    def _start(self, worker: int) -> int:
        return _HEAD + worker * _SLOT + _HEAD

    def _read(self, worker: int, position: int, number: int, reply: Reply) -> tuple[int, int]:
        """Add a ring's records from a position on to the reply; returns where the next ones begin."""
        taken = 0
        while taken < _MAX_REPLY_BYTES:
            written, oldest, _, _ = self.state(worker)
            position = max(position, oldest)
            if position >= written:
                break
            length, checksum = _FRAME.unpack(self.read_at(worker, position, _FRAME.size))
            data = self.read_at(worker, position + _FRAME.size, length) if length <= RING_BYTES else b""
            if self.state(worker)[1] > position:
                continue  # It was overwritten meanwhile.
            if zlib.crc32(data) != checksum:
                break  # The writer's bytes are still on their way from another core.
            record = _decode(data)
            reply.lost += record.number - number
            reply.records.append(record)
            position, number = position + _FRAME.size + length, record.number + 1
            taken += length
        return position, number


class Recorder:
    """One worker's writer; `on` is brought up to date a few times a second by `refresh`."""

    def __init__(self, shared: SharedRecorder, worker: int) -> None:
        self.shared = shared
        self.on = False
        self._worker = worker
        self._limit = 0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Learn whether to record; forget everything when not."""
        until, share = self.shared.control()
        # Ids are taken by their checksum, so that every revision takes the same ones.
        self._limit = round(share * 2**32)
        was, self.on = self.on, time.monotonic() < until
        if was and not self.on:
            with self._lock:
                written, _, records, oversized = self.shared.state(self._worker)
                self.shared.set_state(self._worker, written, written, records, oversized)
                self.shared.release(self._worker)

    def takes(self, request_id: str) -> bool:
        """Whether requests with this id are among those that are recorded."""
        return zlib.crc32(request_id.encode()) < self._limit

    def begin(self, environ: dict[str, Any], request_id: str) -> Taking | None:
        """Begin to record a request, before its body is read; None when its id is not among those taken."""
        if not self.takes(request_id):
            return None
        taking = Taking(self, environ, request_id)
        environ["wsgi.input"] = taking
        return taking

    def put(self, record: Record) -> None:
        """Append a record, over the oldest ones when the ring is full; `number` is given here."""
        with self._lock:
            written, oldest, records, oversized = self.shared.state(self._worker)
            if len(record.answer) > MAX_ANSWER_BYTES:
                self.shared.set_state(self._worker, written, oldest, records, oversized + 1)
                return
            data = _encode(msgspec.structs.replace(record, number=records))
            frame = _FRAME.pack(len(data), zlib.crc32(data)) + data
            while written + len(frame) - oldest > RING_BYTES:
                oldest += (
                    _FRAME.size + _FRAME.unpack(self.shared.read_at(self._worker, oldest, _FRAME.size))[0]
                )
            # Readers are told what goes before it goes, and what came after it came.
            self.shared.set_state(self._worker, written, oldest, records, oversized)
            self.shared.write_at(self._worker, written, frame)
            self.shared.set_state(self._worker, written + len(frame), oldest, records + 1, oversized)


class Taking:
    """A request that is being recorded: its body is kept while the server reads it."""

    def __init__(self, recorder: Recorder, environ: dict[str, Any], request_id: str) -> None:
        self._recorder = recorder
        self._input = environ["wsgi.input"]
        self._id = request_id
        self._path: str = environ["PATH_INFO"]
        self._type = kind(environ.get("CONTENT_TYPE"), environ.get("HTTP_CONTENT_ENCODING"))
        self._body = bytearray()
        self._digest = 0

    def read(self, *size: int) -> bytes:
        """Read the request's body, or so many bytes of it; the server's own reader takes no negative size."""
        data: bytes = self._input.read(*size)
        self._digest = zlib.crc32(data, self._digest)
        if len(self._body) <= MAX_REQUEST_BYTES:
            self._body += data[: MAX_REQUEST_BYTES + 1]
        return data

    def end(self, status: int, body: bytes, headers: Sequence[tuple[str, str]], seconds: float) -> None:
        """Record the answer."""
        given = dict(headers)
        kept = b"" if len(self._body) > MAX_REQUEST_BYTES else bytes(self._body)
        self._recorder.put(
            Record(
                number=0,
                id=self._id,
                path=self._path,
                status=status,
                seconds=seconds,
                digest=self._digest,
                request=kept,
                request_type=self._type,
                answer=body,
                answer_type=kind(given.get("content-type"), given.get("content-encoding")),
                head=int(given.get("inference-header-content-length", 0)),
            )
        )


def kind(content_type: str | None, encoding: str | None) -> str:
    """Content-Type without parameters and Content-Encoding, joined by a space."""
    mime = (content_type or "").partition(";")[0].strip().lower()
    return f"{mime} {(encoding or 'identity').lower()}"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
