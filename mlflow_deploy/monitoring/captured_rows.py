"""Columns of captured rows, and the rows of some files by batches and by columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring import capture_files as files
from mlflow_deploy.monitoring.capture_files import TIME, Segment

REQUEST_ID = "_request_id"
ROW = "_row"
LATENCY = "_latency_ms"
STATUS = "_status"
SERVICE_COLUMNS = (REQUEST_ID, ROW, TIME, LATENCY, STATUS)
"""Columns of every captured row that are no features and no answers."""
SERVICE_SCHEMA = pa.schema(
    list(
        zip(
            SERVICE_COLUMNS,
            (pa.string(), pa.int32(), files.MICROSECONDS, pa.float32(), pa.int16()),
            strict=True,
        )
    )
)


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
        schema = select_columns(self._schema, [name])
        for segment, count in zip(self._segments, self._counts, strict=True):
            left = count
            for batch in files.batches_of(segment, [name], self._start, self._end):
                array = files.fit(batch, schema).column(0).slice(0, left)
                left -= len(array)
                if len(array):
                    yield array


def batches_of_segments(
    segments: list[Segment], schema: pa.Schema, start: datetime, end: datetime
) -> Iterator[pa.RecordBatch]:
    """The rows of files with start <= `_time` < end, all batches with the columns of `schema`."""
    for segment in segments:
        for batch in files.batches_of(segment, schema.names, start, end):
            yield files.fit(batch, schema)


def select_columns(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Some columns of captured rows; None selects all.

    Raises:
        DataError: a column is in none of the rows that there are.
    """
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
