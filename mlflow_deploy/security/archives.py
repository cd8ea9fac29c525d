"""Archives and compressed files, read in memory within limits: nothing is unpacked to a disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

HEAD_BYTES = 512
"""How much of a file `kind_of` wants to see."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\x93NUMPY", "npy"), (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "xz"), (b"\x5d\x00\x00", "lzma"),
    (b"\x04\x22\x4d\x18", "unread:LZ4"), (b"\x28\xb5\x2f\xfd", "unread:Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "unread:7-Zip"), (b"Rar!\x1a\x07", "unread:RAR"),
)  # fmt: skip
_DAMAGE = (
    OSError, EOFError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, AssertionError,
    OverflowError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


class ArchiveUnreadableError(Exception):
    """An archive or compressed file is damaged, protected, or of an unknown make."""


class LimitExceededError(Exception):
    """There is more in it than an audit reads."""


class Budget:
    """What one audit may read out of archives and compressed files in all, so that bombs end early.

    Args:
        bytes_left: bytes after decompression.
        members_left: members of archives.
        depth: archives inside each other.
    """

    def __init__(self, bytes_left: int = 4 << 30, members_left: int = 100_000, depth: int = 8) -> None:
        self.bytes_left, self.members_left, self.depth = bytes_left, members_left, depth

    def read(self, file: Any) -> bytes:
        """All of a file, when there is room for it.

        Raises:
            LimitExceededError: there is none.
            ArchiveUnreadableError: it cannot be read to its end.
        """
        out = io.BytesIO()
        try:
            while block := file.read(min(1 << 20, self.bytes_left + 1)):
                self.bytes_left -= len(block)
                if self.bytes_left < 0:
                    self.bytes_left = 0
                    raise LimitExceededError("it grows beyond what an audit reads")
                out.write(block)
        except _DAMAGE as error:
            raise ArchiveUnreadableError(str(error) or type(error).__name__) from error
        return out.getvalue()

    def count(self) -> None:
        """Take note of one more member.

        Raises:
            LimitExceededError: it is one too many.
        """
        self.members_left -= 1
        if self.members_left < 0:
            raise LimitExceededError("it has more members than an audit reads")


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        name: as the archive has it.
        kind: `file`, `folder`, `link` or `other`.
        open: opens a file; raises what `_DAMAGE` lists.
    """

    name: str
    kind: str
    open: Callable[[], Any]

    def head(self) -> bytes:
        """The first bytes.

        Raises:
            ArchiveUnreadableError: they cannot be read.
        """
        try:
            with self.open() as file:
                return bytes(file.read(HEAD_BYTES))
        except _DAMAGE as error:
            raise ArchiveUnreadableError(str(error) or type(error).__name__) from error


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes; '' when it is none of what is known here."""
    if head[257:262] == b"ustar":
        return "tar"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if len(head) > 1 and head[0] == 0x78 and int.from_bytes(head[:2]) % 31 == 0:
        return "zlib"
    return ""


def expand(kind: str, file: BinaryIO, budget: Budget) -> bytes:
    """The content of a compressed file.

    Raises:
        ArchiveUnreadableError: it is damaged, cut off, or something follows it.
        LimitExceededError: it is too large.
    """
    opened: Any
    if kind == "zlib":
        return budget.read(_Inflating(file))
    with (
        gzip.GzipFile(fileobj=file)
        if kind == "gzip"
        else (bz2.BZ2File(file) if kind == "bz2" else lzma.LZMAFile(file)) as opened
    ):
        return budget.read(opened)


class _Inflating:
    """A zlib stream to read from."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._inflate, self._waiting = file, zlib.decompressobj(), b""

    def read(self, size: int) -> bytes:
        while not self._inflate.eof:
            data = self._waiting or self._file.read(1 << 16)
            if not data:
                raise EOFError("the compressed data is cut off")
            out = self._inflate.decompress(data, size)
            self._waiting = self._inflate.unconsumed_tail
            if out:
                return out
        if self._inflate.unused_data or self._file.read(1):
            raise EOFError("something follows the compressed data")
        return b""


@contextlib.contextmanager
def members(kind: str, file: BinaryIO, budget: Budget) -> Iterator[list[Member]]:
    """The entries of a zip or tar archive, which is open meanwhile.

    Raises:
        ArchiveUnreadableError: its directory is damaged.
        LimitExceededError: there are too many.
    """
    try:
        if kind == "zip":
            with zipfile.ZipFile(file) as zipped:
                yield list(_zip_members(zipped, budget))
        else:
            with tarfile.open(fileobj=file, mode="r:") as tarred:
                yield list(_tar_members(tarred, budget))
    except _DAMAGE as error:
        raise ArchiveUnreadableError(str(error) or type(error).__name__) from error


def _zip_members(archive: zipfile.ZipFile, budget: Budget) -> Iterator[Member]:
    for info in archive.infolist():
        budget.count()
        mode = stat.S_IFMT(info.external_attr >> 16)
        kind = "folder" if info.is_dir() else "link" if mode == stat.S_IFLNK else "file"
        yield Member(info.orig_filename, kind, lambda info=info: archive.open(info))  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile, budget: Budget) -> Iterator[Member]:
    for info in archive:
        budget.count()
        kinds = (
            (info.isfile(), "file"),
            (info.isdir(), "folder"),
            (info.islnk() or info.issym(), "link"),
        )
        kind = next((kind for holds, kind in kinds if holds), "other")
        yield Member(info.name, kind, lambda info=info: archive.extractfile(info))  # type: ignore[misc]


def leads_outside(name: str) -> bool:
    """Whether a path that stands in a file leads out of the folder it is meant for, on any system."""
    parts = re.split(r"[/\\]", name)
    return (
        not name
        or "\0" in name
        or parts[0] in ("", "~")
        or ".." in parts
        or re.match(r"[A-Za-z]:", name) is not None
    )
