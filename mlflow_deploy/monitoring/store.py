"""The results of a deployment's monitors: one JSON file per window, whose creation is its commit."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import fsync_folder, write_atomic
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult

KINDS: tuple[MonitorKind, ...] = ("drift", "performance")

_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_FILE = re.compile(r"(?P<start>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)(\.(?P<number>[0-9]+))?\.json")


class ResultStore:
    """Results below `<data>/monitor/rev-<N>/<kind>/`: `<start>.json`, and `<start>.2.json` when it was redone.

    A result is never changed but for the MLflow run that it gets later.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store.

        Args:
            folder: the deployment's data folder; need not exist.
        """
        self.folder = folder / "monitor"
        self._known: dict[Path, tuple[int, WindowResult]] = {}

    def revisions(self) -> list[int]:
        """Numbers of the revisions that have results, rising."""
        names = (path.name.removeprefix("rev-") for path in self.folder.glob("rev-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def results(
        self, revision: int | None = None, kind: MonitorKind | None = None, *, superseded: bool = False
    ) -> list[WindowResult]:
        """Results in the order of revision, kind, start and number.

        Args:
            revision: only of this one.
            kind: only of this monitor.
            superseded: also those that a later result of the same window replaced.

        Raises:
            StateWriteFailed: a file cannot be read.
        """
        found = []
        for number in [revision] if revision is not None else self.revisions():
            for each in [kind] if kind is not None else KINDS:
                paths = list(self._paths(number, each))
                newest = {start: (start, last) for start, last, _ in paths}
                found += [
                    self._read(path)
                    for start, last, path in paths
                    if superseded or newest[start] == (start, last)
                ]
        return found

    def starts(self, revision: int, kind: MonitorKind) -> dict[datetime, int]:
        """Start of each window that has a result -> the highest number; reads no file."""
        return {start: number for start, number, _ in self._paths(revision, kind)}

    def latest(self, revision: int, kind: MonitorKind) -> WindowResult | None:
        """The result of the window that began last, None without any."""
        paths = list(self._paths(revision, kind))
        return self._read(paths[-1][2]) if paths else None

    def last(self, revision: int, kind: MonitorKind, count: int) -> list[WindowResult]:
        """The results that hold of the windows that began last, the oldest first."""
        newest = {start: path for start, _, path in self._paths(revision, kind)}
        return [self._read(path) for path in list(newest.values())[-count:]]

    def before(self, revision: int, kind: MonitorKind, start: datetime) -> WindowResult | None:
        """The result of the last window that began before a time, None without any."""
        earlier = [path for began, _, path in self._paths(revision, kind) if began < start]
        return self._read(earlier[-1]) if earlier else None

    def get(self, revision: int, kind: MonitorKind, start: datetime, number: int = 0) -> WindowResult | None:
        """The result of a window, None when there is none.

        Args:
            number: which of several; 0 = the one that holds.
        """
        number = number or self.starts(revision, kind).get(start, 1)
        path = self.place(revision, kind) / f"{stem(start, number)}.json"
        return self._read(path) if path.exists() else None

    def place(self, revision: int, kind: MonitorKind) -> Path:
        """The folder of one monitor's results."""
        return self.folder / f"rev-{revision}" / kind

    def path(self, result: WindowResult, suffix: str = ".json") -> Path:
        """The file of a result, or one beside it."""
        name = stem(datetime.fromisoformat(result.start), result.number)
        return self.place(result.revision, result.kind) / f"{name}{suffix}"

    def commit(self, result: WindowResult, page: str = "") -> bool:
        """Write a result for good; False when the window has a result of this number already.

        Args:
            page: the HTML page that `result.report` names.

        Raises:
            StateWriteFailed: the disk is full or the folder cannot be written; nothing was committed.
        """
        path = self.path(result)
        if path.exists():
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if page:
                write_atomic(path.with_name(result.report), page.encode(), mode=0o640)
            return _create(path, _encoded(result))
        except OSError as error:
            raise StateWriteFailed(path, error.strerror or str(error)) from error

    def mark_logged(self, result: WindowResult, run_id: str) -> WindowResult:
        """Note the MLflow run of a result.

        Raises:
            StateWriteFailed: the disk is full or the folder cannot be written.
        """
        logged = msgspec.structs.replace(result, run_id=run_id)
        try:
            write_atomic(self.path(result), _encoded(logged), mode=0o640)
        except OSError as error:
            raise StateWriteFailed(self.path(result), error.strerror or str(error)) from error
        return logged

    # --- details ---

    def _paths(self, revision: int, kind: MonitorKind) -> Iterator[tuple[datetime, int, Path]]:
        """(start, number, file) in the order of start and number."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.place(revision, kind))  # noqa: PTH208 - a Path per file is slow
        matches = [match for name in names if (match := _FILE.fullmatch(name))]
        found = [(match["start"], int(match["number"] or 1), match.string) for match in matches]
        for start, number, name in sorted(found):
            moment = datetime.strptime(start, _FORMAT).replace(tzinfo=UTC)
            yield moment, number, self.place(revision, kind) / name

    def _read(self, path: Path) -> WindowResult:
        try:
            changed = path.stat().st_mtime_ns
            known = self._known.get(path)
            if known is None or known[0] != changed:
                known = (changed, msgspec.json.decode(path.read_bytes(), type=WindowResult))
                self._known[path] = known
        except (OSError, msgspec.DecodeError) as error:
            raise StateWriteFailed(path, f"the result cannot be read: {error}") from error
        return known[1]


def stem(start: datetime, number: int = 1) -> str:
    """File name of a window's result without its ending."""
    name = start.astimezone(UTC).strftime(_FORMAT)
    return name if number == 1 else f"{name}.{number}"


def _encoded(result: WindowResult) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def _create(path: Path, data: bytes) -> bool:
    """Make a file with its whole content in one step; False when there is one."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o640)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink()
    fsync_folder(path.parent)
    return True
