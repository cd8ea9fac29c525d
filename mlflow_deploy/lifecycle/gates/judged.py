"""Rows with known answers, and what a bundle's server answers to them, side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.policy import DatasetPolicy

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.conversion.rows import Rows
    from mlflow_deploy.lifecycle.gates.server import GateServer
    from mlflow_deploy.monitoring.answers import Answers

_CHUNK = 1000
"""Rows per request."""

_CHUNK_CELLS = 200_000
"""Numbers per request, where rows are long."""


class Rated:
    """Rows that a version can be judged on.

    Attributes:
        frame: the rows with everything that the dataset has, for slices too.
        label: column with the true answers.
        source: where they come from.
    """

    def __init__(self, frame: pd.DataFrame, label: str, source: str) -> None:
        self.frame, self.label, self.source = frame, label, source


def find_rows(dataset: DatasetPolicy, name: str, run_id: str, inputs: list[str]) -> Rated:
    """The rows of a dataset of the policy.

    Args:
        run_id: run of the version, whose validation rows are taken where the policy names no file.
        inputs: names of the signature's columns; empty for tensors without names.

    Raises:
        DataError: there are no rows, or it is not known which column holds the answers.
    """
    from mlflow_deploy.conversion.validation import from_path, from_run

    found = from_path(dataset.path) if dataset.path else from_run(run_id) if run_id else None
    if found is None:
        raise DataError(
            f"Dataset {name!r} has no rows",
            why="the policy names no file, and the version's run has no validation rows",
            hint="Give datasets.NAME.path in the policy, or log rows as an input of context `validation`",
        )
    if found.problem:
        raise DataError(f"Dataset {name!r} cannot be read", why=found.problem)
    extra = [str(column) for column in found.frame.columns if column not in inputs]
    label = dataset.label or (extra[0] if inputs and len(extra) == 1 else found.label or "")
    if label not in found.frame.columns:
        raise DataError(
            f"Dataset {name!r} has no column {label!r}" if label else f"Dataset {name!r} names no label",
            why=f"its columns are {', '.join(map(str, found.frame.columns))}",
            hint="Give datasets.NAME.label in the policy",
        )
    return Rated(found.frame, label, found.source)


def judge(server: GateServer, rated: Rated, signature: dict[str, Any], prediction: str) -> Answers:
    """Ask a server for all rows, and pair its answers with the true ones.

    Args:
        signature: the model's, as MLflow writes it.
        prediction: column of the answer that is judged; empty when it has only one.

    Raises:
        DataError: the rows do not fit the signature, or the answers cannot be judged.
        PredictionError: the server refuses rows.
    """
    from mlflow_deploy.conversion.latency import request_body
    from mlflow_deploy.conversion.rows import count, take
    from mlflow_deploy.monitoring.answers import pair
    from mlflow_deploy.monitoring.tables import open_table

    rows = as_rows(rated, signature)
    total, cells = count(rows), _cells(rows)
    step = max(1, min(_CHUNK, _CHUNK_CELLS // max(1, cells)))
    answers: list[Any] = []
    for start in range(0, total, step):
        body = request_body(take(rows, range(start, min(start + step, total))))
        answers += as_list(server.ask(body), prediction)
    values = np.asarray(answers)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim > 2 or len(values) != total:
        raise DataError(
            "The answers cannot be judged", why=f"{total} rows were answered with shape {list(values.shape)}"
        )
    found = pair(open_table(rated.frame), rated.label, values)
    if found.task is None or not found.judged:
        raise DataError("The answers cannot be judged", why=found.reason or "no row is left")
    return found


def as_rows(rated: Rated, signature: dict[str, Any]) -> Rows:
    """The inputs of the signature from the rows."""
    inputs = signature.get("inputs") or []
    tensors = [each for each in inputs if each.get("type") == "tensor"]
    if not tensors:
        names = [each["name"] for each in inputs if each.get("name") in rated.frame.columns]
        missing = [
            each["name"]
            for each in inputs
            if each["name"] not in rated.frame.columns and each.get("required", True)
        ]
        if missing:
            raise DataError(f"The rows of {rated.source} lack the column {missing[0]!r} of the signature")
        return rated.frame[names]
    if len(inputs) > 1 or tensors[0].get("name"):
        raise DataError("Rows for models of several or named tensors cannot be read from a table")
    spec = tensors[0]["tensor-spec"]
    shape = [int(size) for size in spec["shape"][1:]]
    values = rated.frame.drop(columns=[rated.label]).to_numpy(dtype=np.dtype(spec["dtype"]))
    if math.prod(shape) != values.shape[1]:
        raise DataError(f"The rows of {rated.source} have {values.shape[1]} numbers, the model takes {shape}")
    return {"": values.reshape(len(values), *shape)}


def as_list(predictions: Any, column: str) -> list[Any]:
    """Predictions as one value, or one list of probabilities, per row.

    Raises:
        DataError: the answer has several columns, and it is not said which one counts.
    """
    if isinstance(predictions, dict):
        key = column or (next(iter(predictions)) if len(predictions) == 1 else "")
        if key not in predictions:
            raise _which(list(predictions))
        return list(predictions[key])
    if isinstance(predictions, list) and predictions and isinstance(predictions[0], dict):
        key = column or (next(iter(predictions[0])) if len(predictions[0]) == 1 else "")
        if key not in predictions[0]:
            raise _which(list(predictions[0]))
        return [row[key] for row in predictions]
    return list(predictions)


def _which(columns: list[str]) -> DataError:
    return DataError(
        "It is not known which part of the answer is judged",
        why=f"the model answers {', '.join(map(str, columns))}",
        hint="Give datasets.NAME.prediction in the policy",
    )


def _cells(rows: Rows) -> int:
    if hasattr(rows, "columns"):
        return len(rows.columns)
    return sum(math.prod(array.shape[1:]) for array in rows.values())
