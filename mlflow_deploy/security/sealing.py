"""Sealed files: AES-256-GCM in framed chunks, opened in memory only. `seal_format` describes the file."""

from __future__ import annotations

import contextlib
import hmac
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.security.errors import NotSealed, SealTampered, WrongKey
from mlflow_deploy.security.keys import Key, WrapFailedError
from mlflow_deploy.security.memory import MemoryFiles
from mlflow_deploy.security.seal_format import (
    CHUNK_BYTES,
    CHUNK_LIMIT,
    PREFIX,
    TAG,
    Header,
    Seal,
    SealedFile,
    Slot,
    check_length,
    checked_name,
    derive,
    nonce,
    pieces,
    plain_bytes,
    read_head,
    write_head,
)

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
        nonce_prefix=os.urandom(PREFIX),
        files=tuple(SealedFile(checked_name(name), path.stat().st_size) for name, path in files.items()),
    )
    encoded = msgspec.json.encode(header)
    data_key = os.urandom(32)
    content_key, commitment = derive(data_key, encoded)
    slots = tuple(Slot(key.id, key.wrap(data_key)) for key in keys)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_replacing(output))
        start = write_head(out, encoded, commitment, slots)
        sources = [stack.enter_context(path.open("rb")).fileno() for path in files.values()]
        cipher, limit = _cipher(content_key), header.chunk_bytes

        def encrypt(index: int, plain: memoryview, sealed: memoryview) -> None:
            plain = plain[: plain_bytes(header, index)]
            for source, inside, outside in pieces(header, index):
                _read_exactly(sources[source], plain[outside], inside)
            sealed = sealed[: len(plain) + TAG]
            cipher.encrypt_into(nonce(header, index), plain, None, sealed)
            _write_exactly(out.fileno(), sealed, start + index * (limit + TAG))

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
        found = read_head(file, path.name)
        data_key, _ = _unlock(found, key, path.name)
        slots = tuple(Slot(new.id, new.wrap(data_key)) for new in keys)
        with _replacing(output or path) as out:
            write_head(out, found.encoded, found.commitment, slots)
            out.flush()
            out.seek(0, os.SEEK_END)
            file.seek(found.start)
            while block := file.read(CHUNK_BYTES):
                out.write(block)


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
        found = read_head(file, path.name)
        _, content_key = _unlock(found, key, path.name)
        check_length(found, os.fstat(file.fileno()).st_size, path.name)
        opened = MemoryFiles([item.name for item in found.header.files])
        try:
            _decrypt(file.fileno(), found, content_key, opened.descriptors, path.name)
            opened.freeze()
        except BaseException:
            opened.close()
            raise
    return opened


def _decrypt(source: int, found: Seal, content_key: bytes, targets: Sequence[int], name: str) -> None:
    from cryptography.exceptions import InvalidTag

    header, cipher = found.header, _cipher(content_key)

    def decrypt(index: int, plain: memoryview, sealed: memoryview) -> None:
        plain = plain[: plain_bytes(header, index)]
        sealed = sealed[: len(plain) + TAG]
        _read_exactly(source, sealed, found.start + index * (header.chunk_bytes + TAG))
        try:
            cipher.decrypt_into(nonce(header, index), sealed, None, plain)
        except InvalidTag as error:
            raise SealTampered(name, f"chunk {index + 1} of {header.chunks}") from error
        for target, inside, outside in pieces(header, index):
            _write_exactly(targets[target], plain[outside], inside)

    _each_chunk(header, decrypt)


def _unlock(found: Seal, key: Key, name: str) -> tuple[bytes, bytes]:
    """The data key and the content key; from here on the header is known to be authentic."""
    wrapped = next((slot.wrapped for slot in found.slots if slot.key == key.id), None)
    if wrapped is None:
        raise WrongKey(name, key.id, found.keys)
    try:
        data_key = key.unwrap(wrapped)
    except WrapFailedError as error:
        raise SealTampered(name, "its wrapped key") from error
    content_key, commitment = derive(data_key, found.encoded)
    if not hmac.compare_digest(commitment, found.commitment):
        raise SealTampered(name, "its header")
    header = found.header
    if header.version != 1 or header.cipher != "AES-256-GCM":
        raise NotSealed(name, f"it has version {header.version} with {header.cipher}")
    sizes = [file.bytes for file in header.files]
    if not 0 < header.chunk_bytes <= CHUNK_LIMIT or min(sizes, default=0) < 0:
        raise SealTampered(name, "its header")
    if len(header.nonce_prefix) != PREFIX or header.chunks >= 1 << 32:
        raise SealTampered(name, "its header")
    return data_key, content_key


# --- chunks ------------------------------------------------------------------------------------------------


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise MissingExtra("Sealing", "sealed", missing="cryptography") from error
    return AESGCM(key)


def _each_chunk(header: Header, work: Callable[[int, memoryview, memoryview], None]) -> None:
    """Do the work for every chunk, on all CPUs: OpenSSL and the kernel run without the interpreter's lock."""
    threads = max(1, min(8, len(os.sched_getaffinity(0)), header.chunks))
    failed = threading.Event()

    def some(first: int) -> None:
        size = min(header.chunk_bytes, max(1, header.total))
        plain, sealed = memoryview(bytearray(size)), memoryview(bytearray(size + TAG))
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
