"""Files that survive a kill at any moment: atomic writes, locks, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


def fsync_folder(path: Path) -> None:
    """Make renames and creations inside the folder `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, lasting: bool = True) -> None:
    """Replace `path` by `data` so that a reader or a crash sees the old or the new content, never a part.

    Args:
        lasting: it is on the disk before this returns; without, a kill leaves the old or the new content too,
            but after a loss of power it may be gone.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content is untouched.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    if lasting:
        fsync_folder(path.parent)


def publish_folder(staging: Path, final: Path) -> None:
    """Move the finished folder `staging` to `final` in one step, after its files are on the disk.

    A folder that is already at `final` stays and `staging` is removed: both hold the same content, because
    `final` is named by its digest.
    """
    for file in sorted(staging.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        elif file.is_dir():
            fsync_folder(file)
    fsync_folder(staging)
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(staging)
    fsync_folder(final.parent)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def private_folder() -> Path:
    """This user's own folder under the temporary one, for what all state folders of the machine share.

    Raises:
        OSError: it cannot be made, or somebody else could write into it.
    """
    folder = Path(tempfile.gettempdir()) / f"mlflow-deploy-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    owner = folder.lstat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(errno.EPERM, f"{folder} is not a private folder of this user", str(folder))
    return folder


class LockHeldError(Exception):
    """Another process holds the lock; `owner` is what that process wrote into it."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, owner: str = "") -> Iterator[None]:
    """Hold an advisory lock on the file `path`. The kernel releases it when the process dies.

    Args:
        path: the lock file; made when missing, never removed, since removing it would let two holders in.
        wait: block until the lock is free; otherwise raise at once.
        owner: written into the file for the message that others get.

    Raises:
        LockHeldError: the lock is held by another process and `wait` is false.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LockHeldError(os.pread(fd, 200, 0).decode(errors="replace").strip()) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, owner.encode(), 0)
        yield
    finally:
        os.close(fd)
