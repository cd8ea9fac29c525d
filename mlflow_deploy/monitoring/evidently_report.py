"""Evidently's drift report of a window on a bounded sample, with what would break or mislead it kept away.

The verdict is never Evidently's: it is the picture that a person looks at.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.monitoring.captured import deployment_captures
from mlflow_deploy.monitoring.jobs import capture_of, spec_of, window_of
from mlflow_deploy.monitoring.profile import ColumnProfile, ReferenceProfile
from mlflow_deploy.monitoring.references import reference_of
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.tables import kind_of
from mlflow_deploy.monitoring.window_rows import answered
from mlflow_deploy.monitoring.windows import micros
from mlflow_deploy.targets.base_monitor import MonitoredRevision

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_ROWS = 5_000
METHOD = "jensenshannon"
"""One method whatever the number of rows; Evidently's own choice flips at 1,000."""
_MIN_ROWS = 20


def installed() -> bool:
    """Whether Evidently is there."""
    return importlib.util.find_spec("evidently") is not None


def report_of(data: Path, revision: MonitoredRevision, result: WindowResult) -> str:
    """The report of a drift window as HTML; empty when there is too little to show.

    Raises:
        MissingExtra: Evidently is not installed, and was asked for in any case.
    """
    if not installed():
        if spec_of(revision).evidently == "always":
            raise MissingExtra("Evidently's report", "monitoring", missing="evidently")
        return ""
    captures, window = deployment_captures(data), window_of(result)
    reference, _ = reference_of(
        data, captures, revision.number, spec_of(revision), capture_of(revision), [], micros(window.end)
    )
    if reference.profile is None:
        return ""
    taken, count = [], 0
    for batch in captures.batches(revision.number, window.start, window.end):
        taken.append(batch)
        count += batch.num_rows
        if count >= SAMPLE_ROWS:
            break
    if not taken:
        return ""
    rows = answered(pa.Table.from_batches(taken)).slice(0, SAMPLE_ROWS)
    return render(reference.profile, rows)


def render(profile: ReferenceProfile, rows: pa.Table) -> str:
    """The report of some rows beside rows that are drawn from the profile, which keeps no row of its own.

    Columns that Evidently would fail on are left out: those without values on either side, those that are not
    there or have another type.
    """
    import pandas as pd

    columns = [column for column in profile.columns if _usable(column, rows)]
    if not columns or rows.num_rows < _MIN_ROWS:
        return ""
    generator = np.random.default_rng(0)
    count = min(SAMPLE_ROWS, max(profile.rows, _MIN_ROWS))
    before = pd.DataFrame({column.name: drawn(column, count, generator) for column in columns})
    after = pd.DataFrame({column.name: _values(column, rows) for column in columns})
    names = [column.name for column in columns]
    kept = [name for name in names if before[name].notna().any() and after[name].notna().any()]
    if not kept:
        return ""
    numeric = [column.name for column in columns if column.kind == "numeric" and column.name in kept]
    text = [name for name in kept if name not in numeric]
    return _html(before[kept], after[kept], numeric, text)


def drawn(
    column: ColumnProfile, rows: int, generator: np.random.Generator
) -> npt.NDArray[np.float64] | npt.NDArray[np.object_]:
    """Values that are distributed like the reference's, as exactly as its bins tell."""
    counts = np.asarray(column.counts, dtype=np.float64)
    shares = counts / counts.sum()
    bins = generator.choice(counts.size, rows, p=shares)
    # With a tail only every other row was counted, so the missing ones are compared with all rows.
    share = column.missing / (column.missing + counts.sum() * (2 if column.tail is not None else 1))
    missing = generator.random(rows) < share
    if column.kind == "numeric":
        assert column.moments is not None
        edges = np.concatenate(([column.moments.min], column.edges, [column.moments.max]))
        low = np.clip(edges[bins], column.moments.min, column.moments.max)
        high = np.clip(edges[np.minimum(bins + 1, edges.size - 1)], low, None)
        values = low + (high - low) * generator.random(rows)
        if column.distinct <= len(column.edges) + 1:
            values = low
        values[missing] = np.nan
        return np.asarray(values, dtype=np.float64)
    names = np.array([*column.categories, "other"], dtype=object)
    texts = names[np.minimum(bins, names.size - 1)]
    texts[missing] = None
    return np.asarray(texts, dtype=object)


def _usable(column: ColumnProfile, rows: pa.Table) -> bool:
    if column.name not in rows.column_names or not sum(column.counts):
        return False
    if column.kind not in ("numeric", "categorical") or kind_of(rows.column(column.name).type) != column.kind:
        return False
    return column.kind != "numeric" or column.moments is not None


def _values(column: ColumnProfile, rows: pa.Table) -> npt.NDArray[np.float64] | list[str | None]:
    values = rows.column(column.name)
    if column.kind == "numeric":
        found = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=float)
        return np.where(np.isfinite(found), found, np.nan)
    known = set(column.categories)
    texts: list[str | None] = values.cast(pa.string()).to_pylist()
    return [None if text is None else text if text in known else "other" for text in texts]


def _html(before: pd.DataFrame, after: pd.DataFrame, numeric: list[str], text: list[str]) -> str:
    import warnings

    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(numerical_columns=numeric, categorical_columns=text)
        preset = DataDriftPreset(num_method=METHOD, cat_method=METHOD, num_threshold=0.1, cat_threshold=0.1)
        found = Report([preset]).run(
            Dataset.from_pandas(after, data_definition=definition),
            Dataset.from_pandas(before, data_definition=definition),
        )
        path = Path(work) / "report.html"
        found.save_html(str(path))
        return path.read_text(encoding="utf-8")
