"""Sealed files: AES-256-GCM in framed chunks, opened in memory only.

Layout of a sealed file, integers big-endian::

    8 bytes   magic "MLDSEAL1"
    4 bytes   length of the header
    header    JSON: chunk size, nonce prefix, names and sizes of the files inside
    32 bytes  commitment to data key and header
    4 bytes   length of the key slots
    slots     JSON: the data key wrapped for each key that opens the file
    chunks    AES-256-GCM, each `chunk_bytes` of plaintext and a 16-byte tag, the last one shorter

The chunks are a STREAM (Hoang, Reyhanitabar, Rogaway and Vizar, 2015): a nonce is the 7-byte prefix, a
4-byte counter and a byte that is 1 for the last chunk, so that a chunk that was moved, repeated, left out or
cut off fails.
The content key is derived by HKDF-SHA256 from the random data key with the header's digest as salt, which
binds every chunk to the header; the second half of the derivation is the commitment, which tells a changed
header and a false key from each other before any chunk is read. Key slots stand outside, so that keys are
rotated without encrypting again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.security.errors import NotSealed, SealTampered, SealTruncated, WrongKey
from mlflow_deploy.security.keys import Key, WrapFailedError
from mlflow_deploy.security.memory import MemoryFiles

MAGIC = b"MLDSEAL1"
CHUNK_BYTES = 1 << 20
"""Plaintext in a chunk: small enough to stay in a core's cache, large enough that calls cost nothing."""

_TAG = 16
_PREFIX = 7
_COMMITMENT = 32
_HEADER_LIMIT = 16 << 20
_SLOTS_LIMIT = 1 << 20
_CHUNK_LIMIT = 64 << 20
_INFO = b"mlflow-deploy sealed content 1"


class SealedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file inside: its relative path with '/', and its size in bytes."""

    name: str
    bytes: int


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data key wrapped for one key, which `key` names as `Key.id` does."""

    key: str
    wrapped: bytes


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is authenticated before any content: how the chunks are made and what they hold."""

    chunk_bytes: int
    nonce_prefix: bytes
    files: tuple[SealedFile, ...]
    version: int = 1
    cipher: str = "AES-256-GCM"

    @property
    def total(self) -> int:
        """Bytes of plaintext."""
        return sum(file.bytes for file in self.files)

    @property
    def chunks(self) -> int:
        """Number of chunks; an empty plaintext has one too."""
        return max(1, -(-self.total // self.chunk_bytes))


@dataclass(frozen=True)
class Seal:
    """What a sealed file tells without a key.

    Attributes:
        header: how it is made and what it holds.
        encoded: the header's bytes as they stand in the file.
        commitment: the file's commitment to data key and header.
        slots: who can open it.
        start: offset of the first chunk.
    """

    header: Header
    encoded: bytes
    commitment: bytes
    slots: tuple[Slot, ...]
    start: int

    @property
    def keys(self) -> list[str]:
        """Ids of the keys that open it."""
        return [slot.key for slot in self.slots]


# --- sealing -----------------------------------------------------------------------------------------------


def seal(
    files: Mapping[str, Path], output: Path, keys: Sequence[Key], *, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Encrypt files into one sealed file, which appears under its name when it is complete.

    Args:
        files: path by the name that each file has inside: relative, with '/'.
        keys: each of them opens the file.

    Raises:
        ValueError: no key, or a name that leads outside.
        OSError: a file cannot be read or written.
    """
    if not keys:
        raise ValueError("a sealed file needs at least one key")
    header = Header(
        chunk_bytes=chunk_bytes,
        nonce_prefix=os.urandom(_PREFIX),
        files=tuple(SealedFile(_checked_name(name), path.stat().st_size) for name, path in files.items()),
    )
    encoded = msgspec.json.encode(header)
    data_key = os.urandom(32)
    content_key, commitment = _derive(data_key, encoded)
    slots = tuple(Slot(key.id, key.wrap(data_key)) for key in keys)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_replacing(output))
        start = _write_head(out, encoded, commitment, slots)
        sources = [stack.enter_context(path.open("rb")).fileno() for path in files.values()]
        cipher, limit = _cipher(content_key), header.chunk_bytes

        def encrypt(index: int, plain: memoryview, sealed: memoryview) -> None:
            plain = plain[: _plain_bytes(header, index)]
            for source, inside, outside in _pieces(header, index):
                _read_exactly(sources[source], plain[outside], inside)
            sealed = sealed[: len(plain) + _TAG]
            cipher.encrypt_into(_nonce(header, index), plain, None, sealed)
            _write_exactly(out.fileno(), sealed, start + index * (limit + _TAG))

        _each_chunk(header, encrypt)


def rewrap(path: Path, key: Key, keys: Sequence[Key], output: Path | None = None) -> None:
    """Let other keys open a sealed file, without encrypting its content again.

    Args:
        key: opens the file now.
        keys: open it afterwards, and no others do.
        output: where the new file goes; by default it replaces the old one.

    Raises:
        SealError: the file cannot be opened with `key`.
    """
    if not keys:
        raise ValueError("a sealed file needs at least one key")
    with path.open("rb") as file:
        found = _read_seal(file, path.name)
        data_key, _ = _unlock(found, key, path.name)
        slots = tuple(Slot(new.id, new.wrap(data_key)) for new in keys)
        with _replacing(output or path) as out:
            _write_head(out, found.encoded, found.commitment, slots)
            out.flush()
            out.seek(0, os.SEEK_END)
            file.seek(found.start)
            while block := file.read(CHUNK_BYTES):
                out.write(block)


def _write_head(out: BinaryIO, encoded: bytes, commitment: bytes, slots: Sequence[Slot]) -> int:
    """Write all that stands before the chunks and return its length."""
    listed = msgspec.json.encode(slots)
    head = MAGIC + len(encoded).to_bytes(4) + encoded + commitment + len(listed).to_bytes(4) + listed
    out.write(head)
    out.flush()
    return len(head)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is complete and on the disk."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
            out.flush()
            os.fsync(fd)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _checked_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or str(path) != name:
        raise ValueError(f"{name!r} cannot be the name of a file inside a sealed file")
    return name


# --- opening -----------------------------------------------------------------------------------------------


def open_sealed(path: Path, key: Key) -> MemoryFiles:
    """Decrypt a sealed file into memory. Everything in it is authenticated before anything is handed out.

    Raises:
        NotSealed: it is no sealed file.
        WrongKey: it was sealed for other keys.
        SealTruncated: its end is missing.
        SealTampered: anything else of it was changed.
    """
    with path.open("rb") as file:
        found = _read_seal(file, path.name)
        _, content_key = _unlock(found, key, path.name)
        _check_length(found, os.fstat(file.fileno()).st_size, path.name)
        opened = MemoryFiles([item.name for item in found.header.files])
        try:
            _decrypt(file.fileno(), found, content_key, opened.descriptors, path.name)
            opened.freeze()
        except BaseException:
            opened.close()
            raise
    return opened


def read_seal(path: Path) -> Seal:
    """What a sealed file tells without a key. Nothing of it is authenticated.

    Raises:
        NotSealed: it is no sealed file.
        SealTampered: its head is damaged.
        SealTruncated: its head is cut off.
    """
    with path.open("rb") as file:
        return _read_seal(file, path.name)


def is_sealed(path: Path) -> bool:
    """Whether a file begins as sealed files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _decrypt(source: int, found: Seal, content_key: bytes, targets: Sequence[int], name: str) -> None:
    from cryptography.exceptions import InvalidTag

    header, cipher = found.header, _cipher(content_key)

    def decrypt(index: int, plain: memoryview, sealed: memoryview) -> None:
        plain = plain[: _plain_bytes(header, index)]
        sealed = sealed[: len(plain) + _TAG]
        _read_exactly(source, sealed, found.start + index * (header.chunk_bytes + _TAG))
        try:
            cipher.decrypt_into(_nonce(header, index), sealed, None, plain)
        except InvalidTag as error:
            raise SealTampered(name, f"chunk {index + 1} of {header.chunks}") from error
        for target, inside, outside in _pieces(header, index):
            _write_exactly(targets[target], plain[outside], inside)

    _each_chunk(header, decrypt)


def _read_seal(file: BinaryIO, name: str) -> Seal:
    size = os.fstat(file.fileno()).st_size

    def take(count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise SealTruncated(name, size, file.tell() - len(data) + count)
        return data

    if file.read(len(MAGIC)) != MAGIC:
        raise NotSealed(name, "it does not begin as sealed files do")
    length = int.from_bytes(take(4))
    if length > _HEADER_LIMIT:
        raise SealTampered(name, "the length of its header")
    encoded = take(length)
    commitment = take(_COMMITMENT)
    listed_length = int.from_bytes(take(4))
    if listed_length > _SLOTS_LIMIT:
        raise SealTampered(name, "the length of its key slots")
    listed = take(listed_length)
    try:
        header = msgspec.json.decode(encoded, type=Header)
        names = [_checked_name(item.name) for item in header.files]
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
    except (msgspec.DecodeError, ValueError) as error:
        raise SealTampered(name, "its header") from error
    try:
        slots = msgspec.json.decode(listed, type=tuple[Slot, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SealTampered(name, "the list of its keys") from error
    return Seal(header, encoded, commitment, slots, file.tell())


def _unlock(found: Seal, key: Key, name: str) -> tuple[bytes, bytes]:
    """The data key and the content key; from here on the header is known to be authentic."""
    wrapped = next((slot.wrapped for slot in found.slots if slot.key == key.id), None)
    if wrapped is None:
        raise WrongKey(name, key.id, found.keys)
    try:
        data_key = key.unwrap(wrapped)
    except WrapFailedError as error:
        raise SealTampered(name, "its wrapped key") from error
    content_key, commitment = _derive(data_key, found.encoded)
    if not hmac.compare_digest(commitment, found.commitment):
        raise SealTampered(name, "its header")
    header = found.header
    if header.version != 1 or header.cipher != "AES-256-GCM":
        raise NotSealed(name, f"it has version {header.version} with {header.cipher}")
    sizes = [file.bytes for file in header.files]
    if not 0 < header.chunk_bytes <= _CHUNK_LIMIT or min(sizes, default=0) < 0:
        raise SealTampered(name, "its header")
    if len(header.nonce_prefix) != _PREFIX or header.chunks >= 1 << 32:
        raise SealTampered(name, "its header")
    return data_key, content_key


def _check_length(found: Seal, size: int, name: str) -> None:
    want = found.start + found.header.total + found.header.chunks * _TAG
    if size < want:
        raise SealTruncated(name, size, want)
    if size > want:
        raise SealTampered(name, "what follows its last chunk")


# --- chunks ------------------------------------------------------------------------------------------------


def _derive(data_key: bytes, encoded_header: bytes) -> tuple[bytes, bytes]:
    """Content key and commitment."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt = hashlib.sha256(MAGIC + encoded_header).digest()
    derived = HKDF(algorithm=SHA256(), length=64, salt=salt, info=_INFO).derive(data_key)
    return derived[:32], derived[32:]


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise MissingExtra("Sealing", "sealed", missing="cryptography") from error
    return AESGCM(key)


def _nonce(header: Header, index: int) -> bytes:
    last = index == header.chunks - 1
    return header.nonce_prefix + index.to_bytes(4) + bytes([last])


def _plain_bytes(header: Header, index: int) -> int:
    return min(header.chunk_bytes, header.total - index * header.chunk_bytes)


def _pieces(header: Header, index: int) -> Iterator[tuple[int, int, slice]]:
    """The parts of files in a chunk: number of the file, offset in it, and where they are in the chunk."""
    start = index * header.chunk_bytes
    end = start + _plain_bytes(header, index)
    begin = 0
    for number, file in enumerate(header.files):
        low, high = max(begin, start), min(begin + file.bytes, end)
        if low < high:
            yield number, low - begin, slice(low - start, high - start)
        begin += file.bytes


def _each_chunk(header: Header, work: Callable[[int, memoryview, memoryview], None]) -> None:
    """Do the work for every chunk, on all CPUs: OpenSSL and the kernel run without the interpreter's lock."""
    threads = max(1, min(8, len(os.sched_getaffinity(0)), header.chunks))
    failed = threading.Event()

    def some(first: int) -> None:
        size = min(header.chunk_bytes, max(1, header.total))
        plain, sealed = memoryview(bytearray(size)), memoryview(bytearray(size + _TAG))
        for index in range(first, header.chunks, threads):
            if failed.is_set():
                return
            try:
                work(index, plain, sealed)
            except BaseException:
                failed.set()
                raise

    if threads == 1:
        some(0)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="seal") as pool:
        for future in [pool.submit(some, first) for first in range(threads)]:
            future.result()


def _read_exactly(fd: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(fd, [into], offset)
        if count == 0:
            raise OSError("the file became shorter while it was read")
        into, offset = into[count:], offset + count


def _write_exactly(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
