"""What became of all labels of a deployment, over all its revisions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa

from mlflow_deploy.monitoring.captured import REQUEST_ID, ROW, STATUS, TIME, CaptureStore

_MOMENT = timedelta(microseconds=1)


def label_report(captures: CaptureStore, *, key: str, late_after: timedelta | None = None) -> dict[str, Any]:
    """Join the labels with every captured row, by their keys alone; see `labels.LabelReport`.

    Args:
        key: what labels name: `_request_id`, or a column of the features.

    Raises:
        DataError: no captured row has the key.
    """
    wanted = list(dict.fromkeys([REQUEST_ID, ROW, TIME, STATUS, key]))
    parts = []
    for revision in captures.revisions():
        span = captures.span(revision)
        if span is not None:
            parts.append(captures.read(revision, span[0], span[1] + _MOMENT, wanted))
    rows = pa.concat_tables(parts, promote_options="permissive") if parts else _none(wanted)
    return captures.join(rows, key=key, late_after=late_after).report.to_dict()


def _none(columns: list[str]) -> pa.Table:
    types = {ROW: pa.int32(), TIME: pa.timestamp("us", tz="UTC"), STATUS: pa.int16()}
    return pa.schema([(name, types.get(name, pa.string())) for name in columns]).empty_table()
