"""Read what the scoring servers of a deployment captured, and keep its labels."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import DataError
from mlflow_deploy.files import locked
from mlflow_deploy.monitoring import capture_files as files
from mlflow_deploy.monitoring import captured_rows
from mlflow_deploy.monitoring.capture_files import SealReport, Segment
from mlflow_deploy.monitoring.captured_rows import (
    SERVICE_SCHEMA,
    CapturedRows,
    batches_of_segments,
    select_columns,
)
from mlflow_deploy.monitoring.label_store import LabelStore
from mlflow_deploy.monitoring.labels import Conflicts, LabelledRows, join_labels
from mlflow_deploy.monitoring.orders import read_order, shared_places
from mlflow_deploy.monitoring.shared_storage import SharedFolder

REQUEST_ID = captured_rows.REQUEST_ID
ROW = captured_rows.ROW
TIME = files.TIME
STATUS = captured_rows.STATUS
LATENCY = captured_rows.LATENCY
SERVICE_COLUMNS = captured_rows.SERVICE_COLUMNS
CAPTURE = "capture"
LABELS = "labels"
COUNTS = "counts"
_REVISION = re.compile(r"rev-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Drops:
    """What the servers of a revision could not capture, all their processes together.

    Attributes:
        requests: requests that were not captured, because the queue was full or writing failed.
        rows: rows of them, where they were known.
        write_errors: writes that failed.
    """

    requests: int = 0
    rows: int = 0
    write_errors: int = 0


@dataclass(frozen=True, kw_only=True)
class ExpireReport:
    """What retention removed: files, and their size in bytes."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ShareReport:
    """What went to shared storage: files that were uploaded, and files here that were removed since then."""

    uploaded: int = 0
    removed: int = 0


class CaptureStore:
    """The data folder of a deployment, with what the monitor moved to shared storage; or that alone, anywhere.

    Layout::

        capture/rev-3/open/NAME.arrows   Arrow stream that a worker writes, or wrote and is not sealed yet
        capture/rev-3/NAME.parquet       sealed stream
        capture/rev-3/counts/NAME.json   what a worker could not capture
        labels/NAME.parquet              labels, and labels/open/ as above

    Rows come in no particular order. A stream that cannot be read counts as empty until it is sealed, which
    sets it aside and says so. Reading and sealing may go on at the same time, in any number of processes.

    On shared storage the layout is the same, without streams and counts.

    Args:
        place: the data folder, which need not exist yet; or the URL of a deployment's folder on shared storage.
        shared: revision -> such a URL, of the revisions of a data folder whose sealed rows go there.
    """

    def __init__(self, place: Path | str, *, shared: Mapping[int, str] | None = None) -> None:
        self._url = str(place) if "://" in str(place) else ""
        self._folder = None if self._url else Path(place)
        self._shared = dict(shared or {})
        self._places: dict[int, SharedFolder | None] = {}
        newest = self._url or self._shared.get(max(self._shared, default=0), "")
        self.label_store = LabelStore(
            None if self._folder is None else self._folder / LABELS,
            SharedFolder(newest) / LABELS if newest else None,
        )
        self._spans: dict[Path, tuple[datetime, datetime] | None] = {}

    @property
    def folder(self) -> Path:
        """The data folder.

        Raises:
            DataError: only what is on shared storage was asked for.
        """
        if self._folder is None:
            raise DataError(
                f"{self._url} is shared storage",
                why="only sealed rows and labels are there",
                hint="What is more is in the data folder of the deployment",
            )
        return self._folder

    def revision_folder(self, revision: int) -> Path:
        """Where the rows of a revision are on this machine."""
        return self.folder / CAPTURE / f"rev-{revision}"

    def revisions(self) -> list[int]:
        """Numbers of the revisions that captured anything, in order."""
        names = {name for url in {*self._shared.values(), self._url} - {""} for name in _names(url)}
        if self._folder is not None:
            names |= {path.name for path in (self._folder / CAPTURE).glob("rev-*")}
        return sorted(int(match[1]) for match in map(_REVISION.fullmatch, names) if match)

    def span(self, revision: int) -> tuple[datetime, datetime] | None:
        """Times of the first and of the last captured row, UTC; None without rows."""
        spans = [span for _, span in self._segments(revision) if span is not None]
        return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None

    def schema(self, revision: int, start: datetime, end: datetime) -> pa.Schema:
        """Columns of the rows with start <= `_time` < end; only those of the service without such rows."""
        return self._snapshot(revision, start, end)[1]

    def read(
        self, revision: int, start: datetime, end: datetime, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows with start <= `_time` < end, from sealed files and open streams alike.

        Args:
            columns: which to read; None reads all.

        Raises:
            DataError: a column is in none of the rows that there are.
        """
        segments, schema = self._snapshot(revision, start, end)
        schema = select_columns(schema, columns)
        return pa.Table.from_batches(list(batches_of_segments(segments, schema, start, end)), schema)

    def batches(
        self,
        revision: int,
        start: datetime,
        end: datetime,
        columns: Sequence[str] | None = None,
        *,
        unless: Callable[[datetime, datetime], bool] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The same a batch at a time, so that memory stays bounded; all batches have the same columns.

        Args:
            unless: tells from the times of its first and last row that a file need not be read.
        """
        segments, schema = self._snapshot(revision, start, end, unless)
        yield from batches_of_segments(segments, select_columns(schema, columns), start, end)

    def table(self, revision: int, start: datetime, end: datetime) -> CapturedRows:
        """The same rows by column, as `detect_drift` and `build_profile` take them, with bounded memory."""
        return CapturedRows(*self._snapshot(revision, start, end), start, end)

    def seal(self, revision: int) -> SealReport:
        """Turn what no server writes any more into Parquet, labels too; each row exactly once, see
        `capture_files.seal`.

        Raises:
            OSError: a file cannot be written.
        """
        folder = self.revision_folder(revision)
        report = SealReport()
        if folder.is_dir():
            with locked(folder / ".seal.lock", wait=True):
                report += files.seal(folder)
        return report + self.label_store.seal()

    def share(self, revision: int, *, needed_from: datetime | None = None) -> ShareReport:
        """Copy sealed files to shared storage, each exactly once, and remove those here that are not needed.

        Args:
            needed_from: rows before this time are not soon read again; None = all are.

        Raises:
            StorageUnavailable: the storage does not answer; what is not there stays here.
            OSError: a file cannot be removed.
        """
        shared, report = self._shared_of(revision), ShareReport()
        folder = self.revision_folder(revision)
        if shared is None or not folder.is_dir():
            return report
        with locked(folder / ".share.lock", wait=True):
            self.label_store.share()
            shared.forget()
            found = self._segments(revision)
            for segment, span in found:
                if (
                    segment.sealed
                    and segment.path is not None
                    and segment.shared is None
                    and span is not None
                ):
                    with contextlib.suppress(FileNotFoundError):  # Its time was over.
                        shared.upload(segment.path, span)
                        report = replace(report, uploaded=report.uploaded + 1)
            shared.tidy()
            for segment, span in self._segments(revision) if report.uploaded else found:
                old = span is not None and needed_from is not None and span[1] < needed_from
                if segment.sealed and segment.path is not None and segment.shared is not None and old:
                    segment.path.unlink(missing_ok=True)
                    report = replace(report, removed=report.removed + 1)
        return report

    def expire(
        self,
        revision: int,
        *,
        now: datetime,
        max_age: timedelta | None = None,
        max_bytes: int | None = None,
    ) -> ExpireReport:
        """Remove the sealed files whose last row is older than `max_age`, then the oldest ones until the rows
        of the revision take at most `max_bytes`; here and on shared storage.

        Raises:
            OSError: a file cannot be removed.
            StorageUnavailable: the shared storage does not answer, or does not allow it.
        """
        report = ExpireReport()
        kept = []
        for segment, span in self._segments(revision):
            if segment.sealed and max_age is not None and (span is None or span[1] < now - max_age):
                report = _remove(segment, report)
            else:
                kept.append(segment)
        sizes = {segment: _size(segment) for segment in kept}
        total = sum(sizes.values())
        for segment in kept:
            if max_bytes is None or total <= max_bytes:
                break
            if segment.sealed:
                report = _remove(segment, report)
                total -= sizes[segment]
        return report

    def drops(self, revision: int) -> Drops:
        """What the servers of a revision could not capture since it was made; known in the data folder only."""
        total = Drops()
        for path in (self.revision_folder(revision) / COUNTS).glob("[!.]*.json"):
            try:
                part = msgspec.json.decode(path.read_bytes(), type=Drops)
            except FileNotFoundError:
                continue
            except msgspec.DecodeError as error:
                raise DataError(f"{path} cannot be read", why=str(error), hint="Remove it") from error
            total = Drops(
                requests=total.requests + part.requests,
                rows=total.rows + part.rows,
                write_errors=total.write_errors + part.write_errors,
            )
        return total

    def add_labels(self, table: pa.Table, *, source: str) -> int:
        """Keep labels; see `LabelStore.add`."""
        return self.label_store.add(table, source=source)

    def labels(self) -> pa.Table:
        """All labels of the deployment: columns key, row, label, time, source; see `LabelStore.read`."""
        return self.label_store.read()

    def join(
        self,
        rows: pa.Table,
        *,
        key: str = REQUEST_ID,
        late_after: timedelta | None = None,
        conflicts: Conflicts = "latest",
        labels: pa.Table | None = None,
    ) -> LabelledRows:
        """Give captured rows their labels, in a column `label`.

        Args:
            rows: what `read` gave, with the key column and `_time`; rows of failed requests get no label.
            key: column that labels name: `_request_id`, where a label also names a row of its request, or a
                column of the features.
            late_after: see `join_labels`.
            conflicts: see `join_labels`.
            labels: as `labels` gives them, which is called without.

        Raises:
            DataError: the rows lack the key column.
            ConfigError: they have a column `label` already.
        """
        given = self.labels() if labels is None else labels
        names = {"key": key, "time": TIME, "row": ROW}
        given = given.rename_columns([names.get(name, name) for name in given.column_names])
        keys = (key, ROW) if key == REQUEST_ID and ROW in rows.column_names else (key,)
        given = given.select([*keys, TIME, "label"])
        if STATUS in rows.column_names:
            rows = rows.filter(pc.equal(rows.column(STATUS), 200))
        return join_labels(
            rows, given, key=keys, label="label", time=TIME, late_after=late_after, conflicts=conflicts
        )

    # --- details ---

    def _segments(self, revision: int) -> list[tuple[Segment, tuple[datetime, datetime] | None]]:
        """Files of a revision with the times of their first and last row; sealed files never change."""
        found = []
        known, self._spans = self._spans, dict(self._spans)
        folder = None if self._folder is None else self.revision_folder(revision)
        for segment in files.find(folder, self._shared_of(revision)):
            key = Path(segment.stem) if segment.path is None else segment.path
            if key in known:
                span = known[key]
            else:
                span = files.span_of(segment)
                if segment.sealed:
                    self._spans[key] = span
            found.append((segment, span))
        return found

    def _shared_of(self, revision: int) -> SharedFolder | None:
        """Where the sealed rows of a revision go, or are."""
        if revision not in self._places:
            url = self._url or self._shared.get(revision, "")
            place = SharedFolder(f"{url}/{CAPTURE}/rev-{revision}") if url else None
            self._places[revision] = place
        return self._places[revision]

    def _snapshot(
        self,
        revision: int,
        start: datetime,
        end: datetime,
        unless: Callable[[datetime, datetime], bool] | None = None,
    ) -> tuple[list[Segment], pa.Schema]:
        """Files that have rows within the times, and the columns of all of them."""
        for limit in (start, end):
            if limit.tzinfo is None:
                raise DataError(f"{limit} has no time zone", hint="Give times in UTC")
        segments = [
            segment
            for segment, span in self._segments(revision)
            if span is not None and span[1] >= start and span[0] < end and not (unless and unless(*span))
        ]
        schemas = [schema for segment in segments if (schema := files.schema_of(segment)) is not None]
        return segments, files.common_schema([SERVICE_SCHEMA, *schemas])


def deployment_captures(data: Path) -> CaptureStore:
    """What a deployment captured, here and where its order says.

    Args:
        data: its data folder.
    """
    order = read_order(data)
    return CaptureStore(data, shared=None if order is None else shared_places(order))


def _names(url: str) -> list[str]:
    return (SharedFolder(url) / CAPTURE).names()


def _size(segment: Segment) -> int:
    if segment.path is None:
        return 0 if segment.shared is None else segment.shared.size
    try:
        return segment.path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(segment: Segment, report: ExpireReport) -> ExpireReport:
    size = _size(segment)
    if segment.shared is not None:
        segment.shared.remove()
    if segment.path is not None:
        segment.path.unlink(missing_ok=True)
    return ExpireReport(files=report.files + 1, bytes=report.bytes + size)
