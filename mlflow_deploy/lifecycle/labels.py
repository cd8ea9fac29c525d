"""Labels in a file become labels of a deployment."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import DataError
from mlflow_deploy.settings import CaptureSettings
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord

if TYPE_CHECKING:
    import pyarrow as pa

REQUEST_ID_COLUMNS = ("request_id", "_request_id", "key")
"""Columns that are taken for the key when nobody names one."""


def add_labels(
    target: Target,
    record: DeploymentRecord,
    file: Path,
    columns: Mapping[str, str],
    late_days: float | None = None,
) -> tuple[int, dict[str, Any]]:
    """Keep the labels in a CSV or Parquet file; returns how many they are, and what became of all labels.

    Args:
        columns: the file's columns by what they are: key, label, row, time; empty for none.
        late_days: labels that came so long after their prediction count as late.

    Raises:
        DataError: the file cannot be read, or lacks a column.
        Unsupported: the target has no data folder.
        MonitorFailed: the labels cannot be joined.
    """
    import pyarrow.parquet as pq

    from mlflow_deploy.monitoring.label_store import normal_labels

    capture = record.stable.settings.capture
    table = _read(file, columns, capture)
    rows = normal_labels(table, source=file.name)
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd")
    target.add_labels(record, content.getvalue())
    arguments = ["labels"]
    arguments += ["--key", capture.key] if capture.key else []
    arguments += ["--late-days", str(late_days)] if late_days is not None else []
    report: dict[str, Any] = json.loads(target.ask_monitor(record, arguments))
    return rows.num_rows, report


def _read(file: Path, columns: Mapping[str, str], capture: CaptureSettings) -> pa.Table:
    """The columns of the file under the names that labels have."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            table = pq.read_table(file)
        else:
            table = pyarrow.csv.read_csv(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"The labels in {file} cannot be read", why=str(error), hint="Give CSV or Parquet"
        ) from error
    guesses = (capture.key,) if capture.key else REQUEST_ID_COLUMNS
    key = columns["key"] or next((name for name in guesses if name in table.column_names), guesses[0])
    wanted = {"key": key, **{name: columns[name] for name in ("label", "row", "time") if columns[name]}}
    lacking = [name for name in wanted.values() if name not in table.column_names]
    if lacking:
        raise DataError(
            f"{file} has no column {', '.join(map(repr, lacking))}",
            why=f"it has {', '.join(table.column_names)}",
            hint="Name the columns with --key, --label, --row and --time",
        )
    found = pa.table({name: table.column(column) for name, column in wanted.items()})
    return _hashed(found, capture) if capture.key and capture.key in capture.hash else found


def _hashed(table: pa.Table, capture: CaptureSettings) -> pa.Table:
    """The labels with their keys hashed as the captured ones are."""
    import pyarrow as pa

    from mlflow_deploy.serving.capture_columns import Hasher, spelled

    hasher = Hasher(capture)
    keys = [None if key is None else hasher.text(spelled(key)) for key in table.column("key").to_pylist()]
    return table.set_column(0, "key", pa.array(keys, pa.string()))
