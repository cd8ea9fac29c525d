"""The reference profile of a bundle: rows of its model's run, as its own server would capture them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from mlflow_deploy.errors import DataError
from mlflow_deploy.settings import CaptureSettings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflow_deploy.bundle import Bundle
    from mlflow_deploy.conversion import Conversion
    from mlflow_deploy.conversion.validation import Validation
    from mlflow_deploy.lifecycle.steps import Progress
    from mlflow_deploy.serving.backends.base import Model

MOST_ROWS = 20_000
"""Rows that are profiled; of more, a random choice that is the same each time."""
_TOGETHER = 500


@dataclass(frozen=True)
class Reference:
    """What became of the reference.

    Attributes:
        profile: the profile as JSON values, None when none could be made.
        notes: what a reader of the revision should know.
    """

    profile: Any = None
    notes: tuple[str, ...] = ()


def make_reference(
    conversion: Conversion, validation: Validation | None, capture: CaptureSettings, progress: Progress
) -> Reference:
    """Profile the features, answers and labels of rows that the model is known to do well on.

    The rows go through the servable's own parsing and computing and are then read as captured requests are, so
    that what differs later is the world and not a rounding on the way.

    Args:
        validation: the rows; None when there are none.
        capture: features that are not captured are not profiled either, nor are those that are hashed.
    """
    if validation is None:
        return Reference(notes=("no reference profile: the model's run has no rows for one",))
    if validation.problem:
        return Reference(notes=(f"no reference profile: {validation.problem}",))
    from mlflow_deploy.serving.inprocess import load_in_process

    progress("Profiling the reference rows")
    hidden = replace(capture, exclude=(*capture.exclude, *capture.hash), hash=())
    try:
        model, bundle = load_in_process(conversion.servable, conversion.content, conversion.signature)
        frame, label = _with_label(validation, model)
        note = ""
        if len(frame) > MOST_ROWS:
            note = f"the reference profile is made of {MOST_ROWS} of {len(frame)} rows"
            frame = frame.sample(MOST_ROWS, random_state=0)
        features = frame.drop(columns=[label]) if label else frame
        table = _captured(model, bundle, features, hidden)
        labels = None if label is None else frame[label]
        profile, problem = _profile(table, labels, bundle.manifest.servable.classes)
    except Exception as error:  # noqa: BLE001 - a version without a reference is deployed all the same, and says so
        why = error.text if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return Reference(notes=(f"no reference profile: {' '.join(why.split())[:300]}",))
    return Reference(profile, tuple(filter(None, (note, problem))))


# --- details ---


def _with_label(validation: Validation, model: Model) -> tuple[pd.DataFrame, str | None]:
    """The rows, and the column with the true answers: the only one that is no input."""
    from mlflow_deploy.conversion.validation import column_beyond

    frame, label = validation.frame.rename(columns=str), validation.label
    signature = model.signature
    if label is None and signature is not None:
        if signature.columns:
            known = {str(column.name) for column in signature.columns}
            extra = [str(column) for column in frame.columns if str(column) not in known]
            label = extra[0] if len(extra) == 1 and signature.named else None
        elif len(signature.tensors) == 1:
            label = column_beyond(frame, signature.tensors[0].shape)
    return frame, label


def _captured(model: Model, bundle: Bundle, frame: pd.DataFrame, settings: CaptureSettings) -> pa.Table:
    """The rows with the model's answers, as captured requests are read."""
    import pyarrow as pa

    from mlflow_deploy.monitoring.capture_files import common_schema, fit
    from mlflow_deploy.serving.arrow_stream import make_batch
    from mlflow_deploy.serving.capture_columns import Answers, Features

    features = Features(bundle, settings)
    answers = Answers(model.to_tensors, settings.max_values, bundle.manifest.servable.classes)
    batches = []
    for body in _bodies(model, frame):
        call = model.parse_json(body)
        asked = features.columns([call.data], [call.rows])
        columns = [*asked, *answers.columns([model.run(call)], [call.rows])]
        batches.append(pa.record_batch(make_batch(columns, call.rows)))
    schema = common_schema(batch.schema for batch in batches)
    return pa.Table.from_batches([fit(batch, schema) for batch in batches], schema)


def _bodies(model: Model, frame: pd.DataFrame) -> Iterator[bytes]:
    """Requests with the rows, some hundred in each."""
    from mlflow_deploy.conversion.native import Tensor
    from mlflow_deploy.conversion.rows import tensors_from

    tensors = model.signature.tensors if model.signature is not None else ()
    for start in range(0, len(frame), _TOGETHER):
        part = frame.iloc[start : start + _TOGETHER]
        if tensors:
            wanted = [Tensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape) for tensor in tensors]
            arrays = {name: array.tolist() for name, array in tensors_from(part, wanted).items()}
            document: Any = {"inputs": arrays.get("", arrays)}
        else:
            values = part.astype(object).where(part.notna(), None)
            rows = {"columns": [str(name) for name in part.columns], "data": values.to_numpy().tolist()}
            document = {"dataframe_split": rows}
        yield msgspec.json.encode(document, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, times as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _profile(table: pa.Table, labels: Any, classes: Sequence[str]) -> tuple[Any, str]:
    """The profile as JSON values, and why it lacks what was there."""
    from mlflow_deploy.monitoring import build_profile
    from mlflow_deploy.serving.capture_columns import PREDICTION, PROBABILITY

    def is_answer(name: str) -> bool:
        return name == PREDICTION or name.startswith((f"{PREDICTION}_", PROBABILITY))

    features = table.select([name for name in table.column_names if not is_answer(name)])
    chances = [name for name in table.column_names if name.startswith(PROBABILITY)]
    given: dict[str, Any] = {}
    if PREDICTION in table.column_names:
        given["predictions"] = table.column(PREDICTION).to_pandas()
    if chances:
        given["probabilities"] = table.select(chances).to_pandas().to_numpy()
        if chances == [f"{PROBABILITY}{name}" for name in classes]:
            given["classes"] = classes
    problem = ""
    try:
        made = build_profile(features, **given, labels=labels)
    except DataError as error:
        problem = f"the reference profile has no labels: {error.text}"
        made = build_profile(features, **given)
    return msgspec.json.decode(made.to_json()), problem
