"""A form as MLflow's python_function: the scoring server's own back end behind `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Bundle, read_bundle
from mlflow_deploy.errors import ConfigError, InvalidInput
from mlflow_deploy.serving.backends.base import load_model
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


class FormModel:
    """A loaded form with the `predict` that MLflow calls.

    Answers are those of the scoring server: one array, a DataFrame, or a dict of arrays, with the shapes and
    types that the form gives.

    Args:
        bundle: the form.
        settings: threads, and the key of a sealed form.
    """

    def __init__(self, bundle: Bundle, settings: ServingSettings | None = None) -> None:
        self._bundle = bundle
        self._model = load_model(bundle, settings or ServingSettings())

    def get_raw_model(self) -> Any:
        """The loaded servable of the scoring server."""
        return self._model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The answer for some rows.

        Args:
            model_input: a DataFrame, an array, or arrays by name: what the signature says.
            params: parameters of the signature; the forms themselves take none.

        Raises:
            InvalidInput: the input does not fit.
        """
        arrays = named_arrays(self._bundle, model_input, [info.name for info in self._model.inputs])
        call = self._model.parse_tensors(arrays, params or {})
        answer = dict(self._model.to_tensors(self._model.run(call)))
        form = self._bundle.manifest.servable.answer
        if form == "array":
            return next(iter(answer.values()))
        if form == "dict":
            return answer
        import pandas as pd

        return pd.DataFrame({name: list(array) for name, array in answer.items()})


def load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    """The form in a folder; MLflow calls it through the flavors' `_load_pyfunc`.

    Args:
        path: folder of the form.
        model_config: what `flavors.base.MODEL_CONFIG` names; MLflow itself leaves out other keys, and says so.

    Raises:
        BundleCorrupt: the form's files were changed.
    """
    return FormModel(read_bundle(Path(path)), ServingSettings(**(model_config or {})))


def named_arrays(bundle: Bundle, model_input: Any, names: list[str]) -> dict[str, Array]:
    """What MLflow hands over, as the arrays by name that the data plane takes.

    Args:
        names: the inputs' names in the scoring server's protocols.
    """
    import pandas as pd

    if isinstance(model_input, pd.Series):
        model_input = model_input.to_frame()
    by_columns = all(feed.columns for feed in bundle.manifest.servable.feeds)
    if isinstance(model_input, pd.DataFrame):
        return _from_frame(model_input, names, by_columns=by_columns)
    if isinstance(model_input, Mapping):
        known = {str(name): np.asarray(value) for name, value in model_input.items()}
        return {name: known[name] for name in names if name in known}
    array = np.asarray(model_input)
    if by_columns and array.ndim == 2 and array.shape[1] == len(names):
        return {name: array[:, at] for at, name in enumerate(names)}
    if not by_columns and len(names) == 1:
        return {names[0]: array}
    raise InvalidInput(
        f"One array of shape {list(array.shape)} cannot be the inputs {', '.join(names)}",
        hint="Give a DataFrame, or a dict of arrays by name",
    )


def _from_frame(frame: Any, names: list[str], *, by_columns: bool) -> dict[str, Array]:
    columns = {str(name): frame[name] for name in frame.columns}
    if by_columns:
        if not set(names) & columns.keys() and len(columns) == len(names):
            columns = dict(zip(names, columns.values(), strict=True))
        return {name: _column(columns[name]) for name in names if name in columns}
    if len(names) == 1 and names[0] not in columns:
        return {names[0]: _stacked(frame.to_numpy())}
    return {name: _stacked(columns[name].to_numpy()) for name in names if name in columns}


def _column(series: Any) -> Array:
    if series.dtype.kind in "biuf":
        return np.asarray(series.to_numpy())
    # Missing values of all kinds become None, which the data plane knows.
    return np.asarray(series.astype(object).where(series.notna(), None).to_numpy(), dtype=object)


def _stacked(array: Array) -> Array:
    """Rows of lists as one array of numbers."""
    if array.dtype != object or not len(array):
        return array
    rows = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    try:
        return np.stack([np.asarray(row) for row in rows])
    except ValueError as error:
        raise ConfigError("The rows differ in shape, so they make no tensor") from error
