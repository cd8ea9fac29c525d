"""Removes captured rows that are too old or take too much room, also where no monitor job does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow_deploy.serving.arrow_stream import OPEN, STREAM

_DAY = 86_400.0


def expire(folder: Path, max_days: float, max_bytes: int) -> int:
    """Remove files whose last row is older than `max_days`, then the oldest until `max_bytes` are left.

    Several processes may do so at once. A file that is being written stays.

    Args:
        folder: the rows of one revision.
        max_days: 0 = any age.
        max_bytes: 0 = any size.

    Returns:
        The files that were removed.

    Raises:
        OSError: a file cannot be removed.
    """
    oldest = time.time() - max_days * _DAY if max_days else 0.0
    found = sorted(_files(folder), key=lambda item: (item[1].st_mtime, item[0].name))
    total = sum(state.st_size for _, state in found)
    removed = 0
    for path, state in found:
        too_much = bool(max_bytes) and total > max_bytes
        if (state.st_mtime < oldest or too_much) and not _written_now(path):
            path.unlink(missing_ok=True)
            total -= state.st_size
            removed += 1
    return removed


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (*folder.glob("*.parquet"), *(folder / OPEN).glob(f"*{STREAM}")):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()


def _written_now(path: Path) -> bool:
    if path.suffix != STREAM:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
