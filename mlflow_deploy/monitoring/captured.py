"""Read what the scoring servers of a deployment captured, and keep its labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.errors import DataError
from mlflow_deploy.files import locked
from mlflow_deploy.monitoring import capture_files as files
from mlflow_deploy.monitoring.capture_files import SealReport, Segment
from mlflow_deploy.monitoring.label_store import LabelStore
from mlflow_deploy.monitoring.labels import Conflicts, LabelledRows, join_labels

REQUEST_ID = "_request_id"
ROW = "_row"
TIME = files.TIME
LATENCY = "_latency_ms"
STATUS = "_status"
SERVICE_COLUMNS = (REQUEST_ID, ROW, TIME, LATENCY, STATUS)
"""Columns of every captured row that are no features and no answers."""
_SERVICE_TYPES = (pa.string(), pa.int32(), files.MICROSECONDS, pa.float32(), pa.int16())
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


class CaptureStore:
    """The data folder of a deployment.

    Layout::

        capture/rev-3/open/NAME.arrows   Arrow stream that a worker writes, or wrote and is not sealed yet
        capture/rev-3/NAME.parquet       sealed stream
        capture/rev-3/counts/NAME.json   what a worker could not capture
        labels/NAME.parquet              labels, and labels/open/ as above

    Rows come in no particular order. A stream that cannot be read counts as empty until it is sealed, which
    sets it aside and says so. Reading and sealing may go on at the same time, in any number of processes.

    Args:
        folder: the data folder; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.label_store = LabelStore(self.folder / LABELS)
        self._spans: dict[Path, tuple[datetime, datetime] | None] = {}

    def revision_folder(self, revision: int) -> Path:
        """Where the rows of a revision are."""
        return self.folder / CAPTURE / f"rev-{revision}"

    def revisions(self) -> list[int]:
        """Numbers of the revisions that captured anything, in order."""
        found = (_REVISION.fullmatch(path.name) for path in (self.folder / CAPTURE).glob("rev-*"))
        return sorted(int(match[1]) for match in found if match)

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
        schema = _select(schema, columns)
        return pa.Table.from_batches(list(_batches(segments, schema, start, end)), schema)

    def batches(
        self, revision: int, start: datetime, end: datetime, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same a batch at a time, so that memory stays bounded; all batches have the same columns."""
        segments, schema = self._snapshot(revision, start, end)
        yield from _batches(segments, _select(schema, columns), start, end)

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

    def expire(
        self,
        revision: int,
        *,
        now: datetime,
        max_age: timedelta | None = None,
        max_bytes: int | None = None,
    ) -> ExpireReport:
        """Remove the sealed files whose last row is older than `max_age`, then the oldest ones until the rows
        of the revision take at most `max_bytes`.

        Raises:
            OSError: a file cannot be removed.
        """
        report = ExpireReport()
        kept = []
        for segment, span in self._segments(revision):
            if segment.sealed and max_age is not None and (span is None or span[1] < now - max_age):
                report = _remove(segment, report)
            else:
                kept.append(segment)
        sizes = {segment: _size(segment.path) for segment in kept}
        total = sum(sizes.values())
        for segment in kept:
            if max_bytes is None or total <= max_bytes:
                break
            if segment.sealed:
                report = _remove(segment, report)
                total -= sizes[segment]
        return report

    def drops(self, revision: int) -> Drops:
        """What the servers of a revision could not capture since it was made."""
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
        for segment in files.find(self.revision_folder(revision)):
            if segment.path in known:
                span = known[segment.path]
            else:
                span = files.span_of(segment)
                if segment.sealed:
                    self._spans[segment.path] = span
            found.append((segment, span))
        return found

    def _snapshot(self, revision: int, start: datetime, end: datetime) -> tuple[list[Segment], pa.Schema]:
        """Files that have rows within the times, and the columns of all of them."""
        for limit in (start, end):
            if limit.tzinfo is None:
                raise DataError(f"{limit} has no time zone", hint="Give times in UTC")
        segments = [
            segment
            for segment, span in self._segments(revision)
            if span is not None and span[1] >= start and span[0] < end
        ]
        schemas = [schema for segment in segments if (schema := files.schema_of(segment)) is not None]
        service = pa.schema(list(zip(SERVICE_COLUMNS, _SERVICE_TYPES, strict=True)))
        return segments, files.common_schema([service, *schemas])


class CapturedRows:
    """Captured rows by column; made by `CaptureStore.table`, reads its files anew for every column."""

    def __init__(self, segments: list[Segment], schema: pa.Schema, start: datetime, end: datetime) -> None:
        self._segments, self._schema, self._start, self._end = segments, schema, start, end
        # Streams grow while they are read; what is counted here is what every column yields.
        self._counts = [
            sum(batch.num_rows for batch in files.batches_of(segment, [TIME], start, end))
            for segment in segments
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, those of the service too."""
        return tuple(self._schema.names)

    @property
    def rows(self) -> int:
        """Number of rows when the table was made."""
        return sum(self._counts)

    def column(self, name: str) -> Iterator[pa.Array]:
        """The values of a column in batches."""
        schema = _select(self._schema, [name])
        for segment, count in zip(self._segments, self._counts, strict=True):
            left = count
            for batch in files.batches_of(segment, [name], self._start, self._end):
                array = files.fit(batch, schema).column(0).slice(0, left)
                left -= len(array)
                if len(array):
                    yield array


def _batches(
    segments: list[Segment], schema: pa.Schema, start: datetime, end: datetime
) -> Iterator[pa.RecordBatch]:
    for segment in segments:
        for batch in files.batches_of(segment, schema.names, start, end):
            yield files.fit(batch, schema)


def _select(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    lacking = [name for name in columns if name not in schema.names]
    if len(schema.names) == len(SERVICE_COLUMNS):
        # Without rows nobody knows which columns there will be.
        schema = pa.schema([*schema, *((name, pa.null()) for name in lacking)])
    elif lacking:
        raise DataError(
            f"No captured row has a column {', '.join(map(repr, lacking))}",
            why=f"the columns are {', '.join(schema.names)}",
        )
    return pa.schema([schema.field(name) for name in columns])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(segment: Segment, report: ExpireReport) -> ExpireReport:
    size = _size(segment.path)
    segment.path.unlink(missing_ok=True)
    return ExpireReport(files=report.files + 1, bytes=report.bytes + size)
