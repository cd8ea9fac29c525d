"""The format of sealed files: what stands before the chunks, and how each chunk is cut and numbered.

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

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from mlflow_deploy.security.errors import NotSealed, SealTampered, SealTruncated

MAGIC = b"MLDSEAL1"
CHUNK_BYTES = 1 << 20
"""Plaintext in a chunk: small enough to stay in a core's cache, large enough that calls cost nothing."""

TAG = 16
"""Bytes of a chunk's tag."""
PREFIX = 7
"""Bytes of the nonces' common beginning."""
_COMMITMENT = 32
_HEADER_LIMIT = 16 << 20
_SLOTS_LIMIT = 1 << 20
CHUNK_LIMIT = 64 << 20
"""Plaintext in a chunk at most."""
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


# --- the head ----------------------------------------------------------------------------------------------


def write_head(out: BinaryIO, encoded: bytes, commitment: bytes, slots: Sequence[Slot]) -> int:
    """Write all that stands before the chunks and return its length."""
    listed = msgspec.json.encode(slots)
    head = MAGIC + len(encoded).to_bytes(4) + encoded + commitment + len(listed).to_bytes(4) + listed
    out.write(head)
    out.flush()
    return len(head)


def read_seal(path: Path) -> Seal:
    """What a sealed file tells without a key. Nothing of it is authenticated.

    Raises:
        NotSealed: it is no sealed file.
        SealTampered: its head is damaged.
        SealTruncated: its head is cut off.
    """
    with path.open("rb") as file:
        return read_head(file, path.name)


def read_head(file: BinaryIO, name: str) -> Seal:
    """What stands before the chunks, which the file is left at; errors as of `read_seal`.

    Args:
        name: what errors call the file.
    """
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
        names = [checked_name(item.name) for item in header.files]
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
    except (msgspec.DecodeError, ValueError) as error:
        raise SealTampered(name, "its header") from error
    try:
        slots = msgspec.json.decode(listed, type=tuple[Slot, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SealTampered(name, "the list of its keys") from error
    return Seal(header, encoded, commitment, slots, file.tell())


def check_length(found: Seal, size: int, name: str) -> None:
    """Refuse a file that is not as long as its header says.

    Raises:
        SealTruncated: it is shorter.
        SealTampered: it is longer.
    """
    want = found.start + found.header.total + found.header.chunks * TAG
    if size < want:
        raise SealTruncated(name, size, want)
    if size > want:
        raise SealTampered(name, "what follows its last chunk")


def checked_name(name: str) -> str:
    """The name of a file inside, as it is.

    Raises:
        ValueError: it is not relative, or not in its simplest form.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or str(path) != name:
        raise ValueError(f"{name!r} cannot be the name of a file inside a sealed file")
    return name


def derive(data_key: bytes, encoded_header: bytes) -> tuple[bytes, bytes]:
    """Content key and commitment."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt = hashlib.sha256(MAGIC + encoded_header).digest()
    derived = HKDF(algorithm=SHA256(), length=64, salt=salt, info=_INFO).derive(data_key)
    return derived[:32], derived[32:]


# --- chunks ------------------------------------------------------------------------------------------------


def nonce(header: Header, index: int) -> bytes:
    """The nonce of a chunk, which says where it stands and whether it is the last."""
    last = index == header.chunks - 1
    return header.nonce_prefix + index.to_bytes(4) + bytes([last])


def plain_bytes(header: Header, index: int) -> int:
    """How much plaintext a chunk holds."""
    return min(header.chunk_bytes, header.total - index * header.chunk_bytes)


def pieces(header: Header, index: int) -> Iterator[tuple[int, int, slice]]:
    """The parts of files in a chunk: number of the file, offset in it, and where they are in the chunk."""
    start = index * header.chunk_bytes
    end = start + plain_bytes(header, index)
    begin = 0
    for number, file in enumerate(header.files):
        low, high = max(begin, start), min(begin + file.bytes, end)
        if low < high:
            yield number, low - begin, slice(low - start, high - start)
        begin += file.bytes
