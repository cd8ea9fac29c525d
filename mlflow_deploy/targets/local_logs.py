"""The log of a local revision: the lines of its replicas' files, oldest first, also while they are written."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.2
# The server begins each line with its time, as JSON or as text; what follows without one belongs to it.
_TIME = re.compile(r'(?:\{"time": ")?(\d{4}-\d\d-\d\d[T ][\d:.,]+)')


def read_logs(paths: Sequence[Path], *, follow: bool) -> Iterator[str]:
    """Lines of several files, merged by time; with `follow`, then those that are written from now on."""
    tails = [_Tail(path) for path in paths]
    try:
        while True:
            stamped = [line for tail in tails for line in tail.new()]
            yield from (line for _, line in sorted(stamped, key=lambda pair: pair[0]))
            if not follow:
                yield from (tail.unfinished for tail in tails if tail.unfinished)
                break
            if not stamped:
                time.sleep(_POLL_SECONDS)
    finally:
        for tail in tails:
            tail.close()


class _Tail:
    """The lines of a file that may be rotated away and begun anew while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._begun = False
        self._rest = ""
        self._stamp = ""

    def new(self) -> list[tuple[str, str]]:
        """(time, line) of what was written since the last call; at the first, of all that there is."""
        text = self._rest
        if not self._begun:
            self._begun = True
            for old in sorted(self._path.parent.glob(f"{self._path.name}.*"), reverse=True):
                text += old.read_text(encoding="utf-8", errors="replace")
        text += self._read()
        whole, mark, self._rest = text.rpartition("\n")
        return [(self._at(line), line) for line in whole.split("\n")] if mark else []

    @property
    def unfinished(self) -> str:
        """A last line that has no end, as a killed process leaves it."""
        return self._rest

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def _read(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            if self._file is None:
                self._file = self._path.open(encoding="utf-8", errors="replace")
            if text := self._file.read():
                return text
            if os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino:
                self._file.close()
                self._file = self._path.open(encoding="utf-8", errors="replace")
                return self._file.read()
        return ""

    def _at(self, line: str) -> str:
        if match := _TIME.match(line):
            self._stamp = match[1]
        return self._stamp
