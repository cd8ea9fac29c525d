"""Sealed files of captured rows and labels on shared storage: at any URL that fsspec knows, by its packages."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlflow_deploy.errors import MissingExtra, StorageUnavailable
from mlflow_deploy.files import fsync_folder, sha256_file
from mlflow_deploy.monitoring.windows import micros, moment
from mlflow_deploy.settings import STORAGE_PACKAGES

Span = tuple[datetime, datetime]
"""Times of the first and of the last row."""

_LISTED_SECONDS = 5.0
_LOCAL = ("file", "local")
_PARQUET = ".parquet"
_ASIDE = ".uploading"
_NAME = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<first>-?\d+)\.(?P<last>-?\d+))?\.(?P<digest>[0-9a-f]{16})" + re.escape(_PARQUET)
)


@dataclass(frozen=True)
class SharedFile:
    """A Parquet file on shared storage; it never changes.

    Attributes:
        path: as the file system of its URL names it.
        stem: name of the stream that it was sealed from.
        size: in bytes.
        span: of its rows, when its name tells it.
        storage: where it is.
    """

    path: str
    stem: str
    size: int
    span: Span | None
    storage: SharedFolder = field(compare=False, repr=False)

    def open(self) -> Any:
        """The file for reading.

        Raises:
            FileNotFoundError: it was removed.
            StorageUnavailable: the storage does not answer.
        """
        with self.storage.told():
            return self.storage.files.open(self.path, "rb")

    def remove(self) -> None:
        """Remove it, if it is still there.

        Raises:
            StorageUnavailable: the storage does not answer, or does not allow it.
        """
        self.storage.forget()
        with self.storage.told(), contextlib.suppress(FileNotFoundError):
            self.storage.files.rm_file(self.path)


class SharedFolder:
    """A folder on shared storage.

    Args:
        url: such as s3://BUCKET/PREFIX; who may use it is for its package to find out, from the environment or
            from the files and settings that it reads.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._listed: tuple[float, frozenset[str], list[SharedFile]] | None = None

    def __truediv__(self, name: str) -> SharedFolder:
        return SharedFolder(f"{self.url}/{name}")

    @cached_property
    def files(self) -> Any:
        """Its file system.

        Raises:
            MissingExtra: fsspec is not installed.
            StorageUnavailable: the protocol is unknown, or its package is not installed.
        """
        return self._opened[0]

    def names(self) -> list[str]:
        """What is in it, none when it is not there."""
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in self._entries())

    def segments(self, here: frozenset[str] = frozenset()) -> list[SharedFile]:
        """The Parquet files in it, oldest first; of two with the same rows only one.

        Args:
            here: stems of the files on this machine. What was listed is used again for a moment, so that a
                round over many windows does not list for each, unless one of them is here no more.
        """
        now = time.monotonic()
        if self._listed is not None and here and now - self._listed[0] < _LISTED_SECONDS:
            _, before, known = self._listed
            if before <= here:
                return known
        found: dict[str, SharedFile] = {}
        for entry in self._entries():
            name = entry["name"].rpartition("/")[2]
            if name.endswith(_PARQUET) and not name.startswith("."):
                segment = self._segment(entry, name)
                found.setdefault(segment.stem, segment)
        segments = sorted(found.values(), key=lambda each: each.stem)
        self._listed = (now, here, segments)
        return segments

    def forget(self) -> None:
        """List anew the next time."""
        self._listed = None

    def upload(self, source: Path, span: Span | None) -> None:
        """Copy a sealed file into the folder; once more changes nothing.

        The name tells what is in it, so that it is the same after a kill. Where a file could be seen half
        written it is written aside and moved.

        Raises:
            FileNotFoundError: the file was removed.
            StorageUnavailable: it did not get there whole.
        """
        times = "" if span is None else ".".join(("", *(str(micros(each)) for each in span)))
        name = f"{source.stem}{times}.{sha256_file(source)[:16]}{_PARQUET}"
        size = source.stat().st_size
        self.forget()
        with self.told():
            files, root = self._opened
            files.invalidate_cache()
            final, aside = f"{root}/{name}", f"{root}/.{name}{_ASIDE}"
            if files.exists(final):
                return
            if self._protocol in STORAGE_PACKAGES:
                # An object is there whole or not at all, and there are no folders.
                files.put_file(str(source), final)
                self._check(final, size)
                return
            files.makedirs(root, exist_ok=True)
            files.put_file(str(source), aside)
            self._check(aside, size)
            if self._protocol in _LOCAL:
                with Path(aside).open("rb") as file:
                    os.fsync(file.fileno())
            files.mv(aside, final)
            if self._protocol in _LOCAL:
                fsync_folder(Path(root))

    def tidy(self) -> None:
        """Remove what a killed upload left.

        Raises:
            StorageUnavailable: the storage does not answer, or does not allow it.
        """
        for entry in self._entries():
            if entry["name"].endswith(_ASIDE):
                with self.told(), contextlib.suppress(FileNotFoundError):
                    self.files.rm_file(entry["name"])

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn what the packages of file systems raise into `StorageUnavailable`; that a file is not there, or
        is no Parquet file, stays what it is."""
        try:
            yield
        except (FileNotFoundError, pa.ArrowInvalid, StorageUnavailable, MissingExtra):
            raise
        except Exception as error:
            # Each package has errors of its own; what they have in common is that somebody must look.
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            raise StorageUnavailable(self.url, why) from error

    # --- details ---

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """(its file system, its path there)."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingExtra("Shared storage of captured rows", "monitoring", missing="fsspec") from error
        try:
            files, root = url_to_fs(self.url)
        except ImportError as error:
            package = STORAGE_PACKAGES.get(self._protocol, "")
            why = f"the package {package!r} is not installed" if package else str(error)
            raise StorageUnavailable(self.url, why) from error
        except ValueError as error:
            raise StorageUnavailable(self.url, str(error)) from error
        return files, str(root).rstrip("/")

    def _entries(self) -> list[dict[str, Any]]:
        """What is in it."""
        with self.told():
            files, root = self._opened
            # Others write into it, and file systems remember what they listed.
            files.invalidate_cache()
            try:
                return list(files.ls(root, detail=True))
            except FileNotFoundError:
                return []

    def _segment(self, entry: dict[str, Any], name: str) -> SharedFile:
        match = _NAME.fullmatch(name)
        if match is None:
            return SharedFile(entry["name"], name.removesuffix(_PARQUET), entry["size"], None, self)
        span = None
        if match["first"] is not None:
            span = (moment(int(match["first"])), moment(int(match["last"])))
        return SharedFile(entry["name"], match["stem"], entry["size"], span, self)

    def _check(self, path: str, size: int) -> None:
        self.files.invalidate_cache()
        there = self.files.info(path)["size"]
        if there != size:
            raise StorageUnavailable(self.url, f"of {size} bytes {there} were written")
