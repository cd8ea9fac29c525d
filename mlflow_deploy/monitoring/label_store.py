"""Labels of a deployment: files that people add, and streams that its servers write for /feedback."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy.errors import DataError
from mlflow_deploy.files import fsync_folder, locked
from mlflow_deploy.monitoring import capture_files as files
from mlflow_deploy.monitoring.capture_files import MICROSECONDS, SealReport
from mlflow_deploy.monitoring.shared_storage import SharedFolder

COLUMNS = ("key", "row", "label", "time", "source")
_TYPES = {"key": pa.string(), "row": pa.int32(), "time": MICROSECONDS, "source": pa.string()}


class LabelStore:
    """The labels of a deployment.

    Args:
        folder: where they are on this machine; None = only what is on shared storage is read.
        shared: gets a copy, so that who reads rows there finds their labels.
    """

    def __init__(self, folder: Path | None, shared: SharedFolder | None = None) -> None:
        self._folder, self._shared = folder, shared

    @property
    def folder(self) -> Path:
        """Where they are on this machine.

        Raises:
            DataError: they are on shared storage, where only the monitor writes.
        """
        if self._folder is None:
            raise DataError(
                "Labels cannot be added on shared storage",
                hint="Use `mlflow-deploy labels add` or POST /feedback of the deployment",
            )
        return self._folder

    def add(self, table: pa.Table, *, source: str) -> int:
        """Keep labels durably; nothing is joined here, and nothing that was there is changed.

        Args:
            table: columns `key` (request id or value of a key column), `label`, and maybe `row` (position in
                the request, 0 without it) and `time` (when the label became known; now without it).
            source: where they come from, for whoever looks later.

        Returns:
            The rows that were kept.

        Raises:
            DataError: the columns are not there, or do not have a type that a label can have.
            OSError: the file cannot be written.
        """
        rows = normal_labels(table, source=source)
        if not rows.num_rows:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        final = self.folder / f"{stamp}-{secrets.token_hex(6)}{files.PARQUET}"
        # Not the name that sealing uses for what it writes aside, since sealing removes what was left of that.
        aside = self.folder / f".{final.name}.adding"
        try:
            with aside.open("wb") as file:
                pq.write_table(rows, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            aside.rename(final)
        finally:
            aside.unlink(missing_ok=True)
        fsync_folder(self.folder)
        count: int = rows.num_rows
        return count

    def read(self) -> pa.Table:
        """All labels: key (text), row (int32), label (its own type; text when several do not go together), time
        (UTC), source."""
        # What is in the folder is all there is; the copy may lag behind.
        segments = files.find(self._folder, self._shared if self._folder is None else None)
        schemas = [schema for segment in segments if (schema := files.schema_of(segment)) is not None]
        known = files.common_schema(schemas)
        label = known.field("label").type if "label" in known.names else pa.null()
        schema = pa.schema([pa.field(name, _TYPES.get(name, label)) for name in COLUMNS])
        batches = [files.fit(batch, schema) for segment in segments for batch in files.batches_of(segment)]
        return pa.Table.from_batches(batches, schema)

    def seal(self) -> SealReport:
        """Turn the streams of servers that do not write them any more into Parquet."""
        if not self.folder.is_dir():
            return SealReport()
        with locked(self.folder / ".seal.lock", wait=True):
            return files.seal(self.folder)

    def share(self) -> None:
        """Copy the sealed files to shared storage, each once.

        Raises:
            StorageUnavailable: the storage does not answer.
        """
        if self._shared is None or not self.folder.is_dir():
            return
        for segment in files.find(self.folder, self._shared):
            if segment.sealed and segment.path is not None and segment.shared is None:
                self._shared.upload(segment.path, None)
        self._shared.tidy()


def normal_labels(table: pa.Table, *, source: str) -> pa.Table:
    """The columns of labels in their types, as they are kept; see `LabelStore.add`.

    Raises:
        DataError: the columns are not there, or do not have a type that a label can have.
    """
    lacking = [name for name in ("key", "label") if name not in table.column_names]
    if lacking:
        raise DataError(
            f"The labels have no column {', '.join(map(repr, lacking))}",
            why=f"they have {', '.join(table.column_names)}",
            hint="Name the columns of the key and of the label",
        )
    count = table.num_rows
    label = table.column("label")
    if pa.types.is_dictionary(label.type):
        label = pc.cast(label, label.type.value_type)
    if pa.types.is_nested(label.type):
        raise DataError(
            f"Labels of the type {label.type} cannot be used", hint="Give one number or text for each label"
        )
    try:
        key = pc.cast(table.column("key"), pa.string())
        row = pc.cast(table.column("row"), pa.int32()) if "row" in table.column_names else pa.nulls(count)
        row = pc.fill_null(pc.cast(row, pa.int32()), 0)
        time = _times(table, count)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError("The labels cannot be read", why=str(error), hint="Check their columns") from error
    return pa.table(
        {"key": key, "row": row, "label": label, "time": time, "source": pa.repeat(pa.scalar(source), count)}
    )


def _times(table: pa.Table, count: int) -> pa.ChunkedArray | pa.Array:
    now = pa.scalar(datetime.now(UTC), MICROSECONDS)
    if "time" not in table.column_names:
        return pa.repeat(now, count)
    given = table.column("time")
    if pa.types.is_string(given.type) or pa.types.is_large_string(given.type):
        given = pc.cast(given, pa.timestamp("us", tz="UTC") if _zoned(given) else pa.timestamp("us"))
    if not pa.types.is_timestamp(given.type) and not pa.types.is_null(given.type):
        raise DataError(f"The times of the labels are {given.type}", hint="Give timestamps, ISO 8601 in text")
    if pa.types.is_timestamp(given.type) and given.type.tz is None:
        # Without time zone it is UTC, and so the same number.
        given = pc.assume_timezone(pc.cast(given, pa.timestamp("us"), safe=False), "UTC")
    return pc.fill_null(pc.cast(given, MICROSECONDS, safe=False), now)


def _zoned(texts: pa.ChunkedArray) -> bool:
    first = pc.drop_null(texts)
    return bool(len(first)) and bool(
        pc.match_substring_regex(first.slice(0, 1), r"(Z|[+-]\d\d:?\d\d)$")[0].as_py()
    )
