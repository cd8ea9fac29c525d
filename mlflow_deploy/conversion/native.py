"""The native model as MLflow loads it: its input columns, its answer for rows, its input example."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.errors import ModelCorrupt

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import PyFuncModel

NUMERIC = ("long", "integer", "float", "double")


@dataclass(frozen=True)
class Column:
    """One input column of an MLflow signature.

    Attributes:
        name: the column's name.
        type: MLflow's type name: long, integer, float, double, boolean, string, datetime, binary, or `other`.
        required: requests must hold the column.
    """

    name: str
    type: str
    required: bool = True


@dataclass(frozen=True)
class Tensor:
    """The unnamed input tensor of an MLflow signature: numpy dtype name (`str` for text) and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NativeModel:
    """A loaded MLflow model. Rows are always a DataFrame; a tensor model's columns are 0, 1, 2...

    Attributes:
        folder: the model's folder.
        meta: the parsed MLmodel file.
        pyfunc: the model, loaded as MLflow serves it.
        columns: columns of the signature; empty for a tensor model or without signature.
        tensor: the tensor of the signature, None for a column model or without signature.
        method: a method of the framework's object that answers instead of the one that MLflow serves.
        hints: values per column at which the model is known to change.
    """

    folder: Path
    meta: Model
    pyfunc: PyFuncModel
    columns: tuple[Column, ...] = ()
    tensor: Tensor | None = None
    method: str = ""
    hints: Mapping[str | int, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def loader(self) -> str:
        """MLflow's loader module, which names the flavor: `mlflow.sklearn`."""
        return str(self.meta.flavors["python_function"].get("loader_module", ""))

    @property
    def predict_fn(self) -> str:
        """The method that answers: predict, predict_proba, ..."""
        return self.method or str(self.meta.flavors["python_function"].get("predict_fn", "predict"))

    def raw(self) -> Any:
        """The framework's own object inside."""
        return self.pyfunc.get_raw_model()

    def probabilities(self) -> NativeModel | None:
        """The same model answering with probabilities, or None when it does so already or cannot."""
        if self.predict_fn != "predict" or not hasattr(self.raw(), "predict_proba"):
            return None
        return replace(self, method="predict_proba")

    def predict(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """The model's answer for rows, with MLflow's checks of the signature.

        Raises:
            Exception: whatever the model raises for rows that it refuses.
        """
        with quiet():
            given = self.as_input(rows)
            answer = getattr(self.raw(), self.method)(given) if self.method else self.pyfunc.predict(given)
        if not isinstance(answer, np.ndarray):
            raise TypeError(f"the model answers with a {type(answer).__name__}, not with an array")
        return answer

    def as_input(self, rows: pd.DataFrame) -> pd.DataFrame | np.ndarray[Any, Any]:
        """Rows in the form that MLflow's scoring server hands to the model."""
        if self.tensor is None:
            return rows
        if self.tensor.dtype == "str":
            return rows.to_numpy(dtype=object).reshape(self.tensor.shape)
        return rows.to_numpy(dtype=self.tensor.dtype).reshape(self.tensor.shape)

    def conform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The signature's columns of a frame, in order, with the dtypes that a parsed request has.

        Raises:
            ValueError: a required column is missing, or its values do not fit the signature's type.
        """
        if self.tensor is not None:
            return _conform_tensor(frame, self.tensor)
        missing = [column.name for column in self.columns if column.required and column.name not in frame]
        if missing:
            raise ValueError(f"column {missing[0]!r} of the model's signature is missing")
        import pandas as pd

        data = {
            column.name: _conform_column(frame[column.name], column)
            for column in self.columns
            if column.name in frame
        }
        return pd.DataFrame(data).reset_index(drop=True)


_PANDAS_TYPES = {
    "long": "int64",
    "integer": "int32",
    "double": "float64",
    "float": "float32",
    "boolean": "bool",
}


def _conform_column(values: pd.Series[Any], column: Column) -> pd.Series[Any]:
    import pandas as pd

    if column.type == "string":
        texts = [None if pd.isna(value) else str(value) for value in values]
        return pd.Series(texts, name=column.name).astype(object).where(pd.notna(values).to_numpy(), np.nan)
    if column.type in _PANDAS_TYPES:
        if column.type in ("long", "integer", "boolean") and values.isna().any():
            raise ValueError(f"column {column.name!r} of type {column.type} has missing values")
        return values.reset_index(drop=True).astype(_PANDAS_TYPES[column.type])  # type: ignore[call-overload, no-any-return]
    return values.reset_index(drop=True)


def _conform_tensor(frame: pd.DataFrame, tensor: Tensor) -> pd.DataFrame:
    width = tensor.shape[1] if len(tensor.shape) > 1 else 1
    if frame.shape[1] != width:
        raise ValueError(f"the rows have {frame.shape[1]} columns, the model takes {width}")
    dtype: Any = object if tensor.dtype == "str" else tensor.dtype
    return frame.set_axis(range(width), axis=1).reset_index(drop=True).astype(dtype)


# --- loading -----------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what MLflow says about models that it loads and serves; each line names one known message."""
    with warnings.catch_warnings():
        for message in (
            ".*[Pp]ickle.*",
            ".*Any type hint is inferred as AnyType.*",
            ".*Hint: Inferred schema contains integer column.*",
            ".*X has feature names, but .* fitted without feature names.*",
            ".*X does not have valid feature names, but .* fitted with feature names.*",
            ".*Found unknown categories in columns.*",
            ".*invalid value encountered.*",
            ".*overflow encountered.*",
            ".*divide by zero encountered.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def read_meta(folder: Path) -> Model:
    """The MLmodel file of a model folder.

    Raises:
        ModelCorrupt: the folder has no MLmodel file, it cannot be read, or it has no python_function flavor.
    """
    from mlflow.models import Model

    file = folder / "MLmodel"
    if not file.is_file():
        raise ModelCorrupt(str(folder), "it has no MLmodel file, so it is not an MLflow model")
    try:
        meta = Model.load(str(file))
        flavors = dict(meta.flavors)
    except Exception as error:
        raise ModelCorrupt(str(folder), f"its MLmodel file is damaged: {_first_line(error)}") from error
    if "python_function" not in flavors:
        raise ModelCorrupt(str(folder), f"it has no python_function flavor, only {sorted(flavors)}")
    return meta


def load_native(folder: Path, meta: Model) -> NativeModel:
    """Load the model as MLflow's scoring server does.

    Raises:
        ModelCorrupt: a file is missing or damaged.
        ImportError: a library that the model needs is not installed.
    """
    try:
        with quiet():
            import mlflow.pyfunc

            pyfunc = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except ImportError:
        raise
    except Exception as error:
        raise ModelCorrupt(str(folder), f"its model file cannot be loaded: {_first_line(error)}") from error
    columns, tensor = _inputs(meta)
    return NativeModel(folder=folder, meta=meta, pyfunc=pyfunc, columns=columns, tensor=tensor)


def _inputs(meta: Model) -> tuple[tuple[Column, ...], Tensor | None]:
    from mlflow.types.schema import DataType

    schema = meta.get_input_schema()
    if schema is None:
        return (), None
    if schema.is_tensor_spec():
        specs = schema.inputs
        if len(specs) != 1 or specs[0].name:
            return (), None
        kind = specs[0].type
        dtype = "str" if kind.kind in "OUS" else kind.name
        return (), Tensor(dtype=dtype, shape=tuple(int(size) for size in specs[0].shape))
    if not schema.has_input_names():
        return (), None
    columns = tuple(
        Column(
            name=str(spec.name),
            type=spec.type.name if isinstance(spec.type, DataType) else "other",
            required=bool(spec.required),
        )
        for spec in schema.inputs
    )
    return columns, None


# --- what travels along ------------------------------------------------------------------------------------


def signature_document(meta: Model) -> dict[str, Any] | None:
    """The signature as JSON: `inputs`, `outputs` and `params`, each a list or None."""
    if meta.signature is None:
        return None
    fields = meta.signature.to_dict()
    return {
        key: None if fields.get(key) is None else json.loads(fields[key])
        for key in ("inputs", "outputs", "params")
    }


def example_document(native: NativeModel) -> dict[str, Any] | None:
    """The model's serving example with the answer that MLflow's own scoring server gives.

    Returns:
        `{"request": body for /invocations, "predictions": answer}`, or None when the model has no example.

    Raises:
        Exception: the model refuses its own example.
    """
    from mlflow.models.utils import load_serving_example
    from mlflow.pyfunc import scoring_server

    info = native.meta.saved_input_example_info
    if not info or not info.get("serving_input_path"):
        return None
    body = load_serving_example(str(native.folder))
    with quiet():
        response = scoring_server.invocations(
            body, "application/json", native.pyfunc, native.meta.get_input_schema()
        )
    answer = json.load(io.StringIO(response.response))
    return {"request": json.loads(body), "predictions": answer["predictions"]}


def example_rows(native: NativeModel) -> pd.DataFrame | None:
    """The model's input example as rows, or None when it has none.

    Raises:
        ValueError: the example does not fit the signature.
    """
    import pandas as pd

    if not native.meta.saved_input_example_info:
        return None
    example: Any = native.meta.load_input_example(str(native.folder))
    if isinstance(example, np.ndarray):
        example = pd.DataFrame(example.reshape(len(example), -1))
    if not isinstance(example, pd.DataFrame):
        raise ValueError(f"the input example is a {type(example).__name__}, not rows")
    return native.conform(example)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
