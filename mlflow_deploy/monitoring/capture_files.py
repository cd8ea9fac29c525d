"""Files of captured rows: Arrow streams that a server writes, and the Parquet files they are sealed into."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy.files import fsync_folder
from mlflow_deploy.monitoring.shared_storage import SharedFile, SharedFolder

TIME = "_time"
OPEN = "open"
STREAM = ".arrows"
PARQUET = ".parquet"
BROKEN = ".broken"
BATCH_ROWS = 65_536
MICROSECONDS = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, kw_only=True)
class SealReport:
    """What sealing did.

    Attributes:
        sealed: streams that became a Parquet file.
        rows: rows in them.
        truncated: those of them whose last batch was cut off when their writer was killed; its rows are lost.
        empty: streams without any row, which were removed.
        open: streams that a server still writes.
        broken: files that are no Arrow streams; they were set aside as `NAME.broken`.
    """

    sealed: int = 0
    rows: int = 0
    truncated: int = 0
    empty: int = 0
    open: int = 0
    broken: tuple[str, ...] = ()

    def __add__(self, other: SealReport) -> SealReport:
        return SealReport(
            sealed=self.sealed + other.sealed,
            rows=self.rows + other.rows,
            truncated=self.truncated + other.truncated,
            empty=self.empty + other.empty,
            open=self.open + other.open,
            broken=self.broken + other.broken,
        )


@dataclass(frozen=True)
class Segment:
    """One file of rows; a stream has the name of the Parquet file that it will be sealed into.

    Attributes:
        path: where it is on this machine; None when it is only on shared storage.
        shared: the same rows on shared storage.
    """

    path: Path | None
    shared: SharedFile | None = None

    @property
    def stem(self) -> str:
        """Its name, which no other file of rows has."""
        if self.path is not None:
            return self.path.stem
        return self.shared.stem if self.shared is not None else ""

    @property
    def sealed(self) -> bool:
        """Whether it is a Parquet file."""
        return self.path is None or self.path.suffix == PARQUET

    @property
    def final(self) -> Segment:
        """The Parquet file."""
        if self.sealed or self.path is None:
            return self
        return Segment(_parquet(self.path), self.shared)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The file for reading; the one on shared storage when the one here was removed.

        Raises:
            FileNotFoundError: both were removed.
            StorageUnavailable: the shared storage does not answer.
        """
        file = None
        with contextlib.suppress(FileNotFoundError):
            file = None if self.path is None else pa.OSFile(str(self.path))
        if file is not None:
            with file:
                yield file
        elif self.shared is None:
            raise FileNotFoundError(str(self.path))
        else:
            with self.shared.storage.told(), self.shared.open() as found:
                yield found


def find(folder: Path | None, shared: SharedFolder | None = None) -> list[Segment]:
    """All files of rows in a folder and on shared storage, oldest first; a stream that was sealed meanwhile,
    and a sealed file that is in both places, are not counted again."""
    # In the order in which rows move on: what moves between two lists is then in both, never in none.
    streams = [] if folder is None else list((folder / OPEN).glob(f"[!.]*{STREAM}"))
    sealed = {} if folder is None else {path.stem: path for path in folder.glob(f"[!.]*{PARQUET}")}
    here = frozenset((*sealed, *(path.stem for path in streams)))
    there = {} if shared is None else {each.stem: each for each in shared.segments(here)}
    paths: dict[str, Path | None] = {
        **dict.fromkeys(there),
        **{path.stem: path for path in streams},
        **sealed,
    }
    return [
        # A stream whose rows are on shared storage is one that sealing did not remove any more.
        Segment(None if stem in there and path in streams else path, there.get(stem))
        for stem, path in sorted(paths.items())
    ]


def schema_of(segment: Segment) -> pa.Schema | None:
    """The columns of a file; None when nothing of it can be read yet, or it was removed."""
    try:
        with segment.open() as file:
            return pq.read_schema(file) if segment.sealed else pa.ipc.open_stream(file).schema
    except FileNotFoundError:
        return None if segment.sealed else schema_of(segment.final)
    except (pa.ArrowInvalid, OSError):
        return None


def batches_of(
    segment: Segment,
    columns: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a file with start <= `_time` < end, a batch at a time; of a stream, all complete batches.

    Args:
        columns: those that the file lacks are left out; None reads all.
    """
    try:
        with segment.open() as file:
            if segment.sealed:
                yield from _rows_of_parquet(file, columns, start, end)
            else:
                for batch in _stream(file):
                    yield from _cut(batch, columns, start, end)
    except FileNotFoundError:
        if not segment.sealed:
            yield from batches_of(segment.final, columns, start, end)
        # Of a sealed one the time was over.


def span_of(segment: Segment) -> tuple[datetime, datetime] | None:
    """First and last `_time` in a file; None without rows."""
    if segment.path is None and segment.shared is not None and segment.shared.span is not None:
        return segment.shared.span
    times: list[datetime] = []
    if segment.sealed:
        try:
            with segment.open() as file:
                metadata = pq.read_metadata(file)
        except FileNotFoundError:
            return None
        for group in range(metadata.num_row_groups):
            known = _group_span(metadata, group)
            if known is None:
                break
            times += known
        else:
            return (min(times), max(times)) if times else None
    for batch in batches_of(segment, [TIME]):
        if batch.num_rows:
            extremes = pc.min_max(batch.column(TIME))
            times += [extremes["min"].as_py(), extremes["max"].as_py()]
    return (min(times), max(times)) if times else None


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all files; a column whose types do not go together becomes text."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.get(field.name)
            if known is None:
                fields[field.name] = pa.field(field.name, field.type)
            elif known.type != field.type:
                fields[field.name] = pa.field(field.name, _common_type(known.type, field.type))
    return pa.schema(list(fields.values()))


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of a schema; those it lacks are missing in every row."""
    arrays = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            array = batch.column(at)
            arrays.append(array if array.type == field.type else pc.cast(array, field.type, safe=False))
    return pa.record_batch(arrays, schema=schema)


def seal(folder: Path) -> SealReport:
    """Turn the streams of a folder that nobody writes any more into Parquet files, each exactly once.

    A Parquet file is written aside, brought to the disk and then renamed; only then its stream goes. After a
    kill in between, the stream is not read, because the Parquet file is there, and the next call removes it.
    The caller lets nobody else seal the folder meanwhile.

    Raises:
        OSError: a file cannot be written; its stream stays.
    """
    report = SealReport()
    for stream in sorted((folder / OPEN).glob(f"[!.]*{STREAM}")):
        with stream.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report += SealReport(open=1)
                continue
            report += _seal(stream)
    for left in folder.glob(f".*{PARQUET}.new"):
        left.unlink()
    return report


# --- details ---


def _parquet(stream: Path) -> Path:
    return stream.parent.parent / f"{stream.stem}{PARQUET}"


def _rows_of_parquet(
    file: Any, columns: Sequence[str] | None, start: datetime | None, end: datetime | None
) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    groups = [at for at in range(parquet.num_row_groups) if _overlaps(parquet.metadata, at, start, end)]
    wanted = None if columns is None else [name for name in names if name in {*columns, TIME}]
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=wanted):
        yield from _cut(batch, columns, start, end)


def _stream(file: Any, cut: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The complete batches of a stream; what was cut off is told in `cut`."""
    try:
        reader = pa.ipc.open_stream(file)
        while True:
            yield reader.read_next_batch()
    except StopIteration:
        return
    except (pa.ArrowInvalid, OSError) as error:
        if cut is not None:
            cut.append(str(error))


def _cut(
    batch: pa.RecordBatch, columns: Sequence[str] | None, start: datetime | None, end: datetime | None
) -> Iterator[pa.RecordBatch]:
    """The rows of a batch within the times, if any."""
    if start is not None or end is not None:
        times, keep = batch.column(TIME), None
        for limit, compare in ((start, pc.greater_equal), (end, pc.less)):
            if limit is not None:
                part = compare(times, pa.scalar(limit, MICROSECONDS))
                keep = part if keep is None else pc.and_(keep, part)
        batch = batch.filter(keep)
    if columns is not None:
        batch = batch.select([name for name in dict.fromkeys(columns) if name in batch.schema.names])
    if batch.num_rows:
        yield batch


def _group_span(metadata: Any, group: int) -> tuple[datetime, datetime] | None:
    """First and last time of a row group, as its statistics say."""
    names = metadata.schema.names
    if TIME not in names:
        return None
    statistics = metadata.row_group(group).column(names.index(TIME)).statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None


def _overlaps(metadata: Any, group: int, start: datetime | None, end: datetime | None) -> bool:
    known = _group_span(metadata, group)
    if known is None:
        return True
    return (start is None or known[1] >= start) and (end is None or known[0] < end)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    try:
        schemas = [pa.schema([pa.field("", one)]), pa.schema([pa.field("", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def _seal(stream: Path) -> SealReport:
    final, aside = _parquet(stream), stream.parent.parent / f".{stream.stem}{PARQUET}.new"
    if final.exists():
        stream.unlink()
        return SealReport()
    cut: list[str] = []
    with pa.OSFile(str(stream)) as file:
        rows = _write_parquet(_stream(file, cut), aside)
    if not rows:
        if stream.stat().st_size and cut and schema_of(Segment(stream)) is None:
            stream.rename(stream.with_suffix(STREAM + BROKEN))
            return SealReport(broken=(stream.name,))
        stream.unlink()
        return SealReport(empty=1, truncated=bool(cut))
    aside.rename(final)
    fsync_folder(final.parent)
    stream.unlink()
    return SealReport(sealed=1, rows=rows, truncated=bool(cut))


def _write_parquet(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    """Write batches as row groups of about `BATCH_ROWS`; no file without rows. Returns the rows."""
    first = next(batches, None)
    if first is None:
        return 0
    waiting = [first]
    total = 0
    rows: int = first.num_rows
    with path.open("wb") as file:
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            for batch in batches:
                if rows >= BATCH_ROWS:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting, total, rows = [], total + rows, 0
                waiting.append(batch)
                rows += batch.num_rows
            writer.write_table(pa.Table.from_batches(waiting))
        file.flush()
        os.fsync(file.fileno())
    if total + rows == 0:
        path.unlink()
    return total + rows
