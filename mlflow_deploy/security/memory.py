"""Files that exist in memory only, and how libraries that want a path or a folder read them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class MemoryFiles:
    """Anonymous files of the kernel (memfd), by the names that they would have in a folder.

    They never have a place on a disk. Leaving the context gives the memory back; what a library has mapped or
    copied stays until it lets go of it.

    Args:
        names: relative paths with '/'.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._files = {
            name: os.memfd_create(PurePosixPath(name).name[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            for name in names
        }

    def __enter__(self) -> MemoryFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """Names of the files, in order."""
        return list(self._files)

    @property
    def descriptors(self) -> list[int]:
        """Their file descriptors, in order."""
        return list(self._files.values())

    def freeze(self) -> None:
        """Let nobody change them any more."""
        for descriptor in self._files.values():
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)

    def path(self, name: str) -> str:
        """A path under /proc by which this process and others of the same user can read a file."""
        return f"/proc/{os.getpid()}/fd/{self._files[name]}"

    def read(self, name: str) -> bytes:
        """A copy of a file's content."""
        return Path(self.path(name)).read_bytes()

    @contextmanager
    def as_folder(self) -> Iterator[Path]:
        """A temporary folder with a symbolic link for each file; only names come to be on a disk."""
        with TemporaryDirectory(prefix="mlflow-deploy-open-") as folder:
            for name in self._files:
                link = Path(folder) / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self.path(name))
            yield Path(folder)

    def close(self) -> None:
        """Give the memory back."""
        while self._files:
            os.close(self._files.popitem()[1])
