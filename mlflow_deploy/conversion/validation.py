"""Validation rows of a model: found at the run that logged it, or read from a file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mlflow_deploy.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

ARTIFACT = "validation/rows.parquet"
"""Artifact of a run that holds its validation rows when no dataset of context `validation` is logged."""


@dataclass(frozen=True)
class Validation:
    """Rows that the model was not trained on, with or without the label.

    Attributes:
        frame: the rows; empty when `problem` says why they could not be read.
        label: the column with the true answers, None when unknown.
        source: where they come from, for reports.
        problem: why rows that exist could not be read; the report repeats it.
    """

    frame: pd.DataFrame
    label: str | None
    source: str
    problem: str = ""


def from_path(path_or_uri: str | Path, *, label: str | None = None) -> Validation:
    """Read rows from a Parquet or CSV file: a local path or a URI that MLflow can fetch.

    Raises:
        DataError: there is no such file or it cannot be read.
    """
    source = str(path_or_uri)
    return Validation(frame=_read(source), label=label, source=source)


VALIDATION = ("validation",)
TRAINING = ("training", "train")


def from_run(run_id: str, *, contexts: Sequence[str] = VALIDATION) -> Validation | None:
    """The validation rows of a run, or None when it has none.

    Looks for a dataset input with such a context, and for validation rows then for the artifact
    `validation/rows.parquet`.
    The label is the one column that the signature of the run's model does not name. Rows that exist but
    cannot be read give a `Validation` whose `problem` says why.

    Raises:
        MlflowException: the run cannot be read.
    """
    import pandas as pd
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    source = next(
        (
            _dataset_uri(item.dataset)
            for item in (run.inputs.dataset_inputs if run.inputs else ())
            if any(tag.key == "mlflow.data.context" and tag.value in contexts for tag in item.tags)
        ),
        None,
    )
    if source is None and contexts == VALIDATION and _has_artifact(run):
        source = f"runs:/{run_id}/{ARTIFACT}"
    if source is None:
        return None
    try:
        frame = _read(source)
    except DataError as error:
        return Validation(frame=pd.DataFrame(), label=None, source=source, problem=error.text)
    return Validation(frame=frame, label=_label(client, run_id, frame), source=source)


def column_beyond(frame: pd.DataFrame, shape: tuple[int, ...]) -> str | None:
    """The last column of a table that has one column more than a tensor has numbers: the true answers."""
    size = math.prod(shape[1:])
    return str(frame.columns[-1]) if size > 0 and frame.shape[1] == size + 1 else None


def _has_artifact(run: Run) -> bool:
    # By the run's own place: by its id MLflow asks the server four times on the way.
    from mlflow.artifacts import list_artifacts

    folder, _, name = ARTIFACT.rpartition("/")
    found = list_artifacts(artifact_uri=f"{run.info.artifact_uri.rstrip('/')}/{folder}")
    return any(Path(item.path).name == name for item in found)


def _dataset_uri(dataset: Any) -> str:
    """Where a logged dataset lies; a source without a place, such as code, gives its description."""
    try:
        fields = json.loads(dataset.source)
    except ValueError:
        return str(dataset.source)
    for key in ("uri", "url", "path"):
        if isinstance(fields, dict) and fields.get(key):
            return str(fields[key])
    return f"{dataset.source_type} dataset {dataset.name!r}"


def _read(source: str) -> pd.DataFrame:
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder:
        try:
            path = _fetch(source, folder)
            if path.is_dir():
                (path,) = (*path.glob("*.parquet"), *path.glob("*.csv"))
            if path.suffix in (".parquet", ".pq"):
                return pd.read_parquet(path)
            return pd.read_csv(path)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"The rows at {source} cannot be read", why=text, hint="Give a Parquet or a CSV file"
            ) from error


def _fetch(source: str, folder: str) -> Path:
    """The file on this machine, fetched into `folder` when it lies elsewhere."""
    parsed = urlparse(source)
    if parsed.scheme in ("", "file"):
        path = Path(unquote(parsed.path)) if parsed.scheme else Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        return path
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=source, dst_path=folder))


def _label(client: Any, run_id: str, frame: pd.DataFrame) -> str | None:
    """The one column that no input of the run's model has."""
    from mlflow.models import Model

    run = client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    for output in outputs:
        schema = Model.load(f"models:/{output.model_id}").get_input_schema()
        if schema is not None and schema.has_input_names():
            extra = [str(column) for column in frame.columns if column not in schema.input_names()]
            return extra[0] if len(extra) == 1 else None
    return None
