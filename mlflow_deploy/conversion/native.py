"""The native model as MLflow loads it: its input columns, its answer for rows, its input example."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.bundle import class_name
from mlflow_deploy.conversion.answers import Answer, as_answer
from mlflow_deploy.errors import ModelCorrupt

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import PyFuncModel

    from mlflow_deploy.conversion.rows import Rows

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
    """An input tensor of an MLflow signature: numpy dtype name (`str` for text), shape, and name.

    The only tensor of a model has the empty name when the signature gives it none.
    """

    dtype: str
    shape: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class NativeModel:
    """A loaded MLflow model. Rows are a DataFrame, for a model of tensors an array by tensor name.

    Attributes:
        folder: the model's folder.
        meta: the parsed MLmodel file.
        pyfunc: the model, loaded as MLflow serves it.
        columns: columns of the signature; empty for a model of tensors or without signature.
        tensors: tensors of the signature; empty for a model of columns or without signature.
        method: a method of the framework's object that answers instead of the one that MLflow serves.
        hints: values per column at which the model is known to change; the columns of an unnamed tensor are
            numbered.
    """

    folder: Path
    meta: Model
    pyfunc: PyFuncModel
    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    method: str = ""
    hints: Mapping[str | int, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def tensor(self) -> Tensor | None:
        """The unnamed tensor of a model that takes only that."""
        return self.tensors[0] if len(self.tensors) == 1 and not self.tensors[0].name else None

    @property
    def rows_at_once(self) -> int | None:
        """How many rows every call must have by the signature; None when any number will do."""
        sizes = {tensor.shape[0] for tensor in self.tensors if tensor.shape and tensor.shape[0] > 0}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def loader(self) -> str:
        """MLflow's loader module, which names the flavor: `mlflow.sklearn`."""
        return str(self.meta.flavors["python_function"].get("loader_module", ""))

    @property
    def predict_fn(self) -> str:
        """The method that answers: predict, predict_proba, ..."""
        return self.method or str(self.meta.flavors["python_function"].get("predict_fn", "predict"))

    @property
    def class_values(self) -> Any:
        """The classes as the framework's object has them, None when it has none."""
        return getattr(self.raw(), "classes_", None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes whose probabilities the model answers, in that order; empty when it does not."""
        known = self.class_values if self.predict_fn == "predict_proba" else None
        # Models of several outputs have a list of arrays.
        if known is None or isinstance(known, list):
            return ()
        return tuple(class_name(value) for value in np.ravel(known).tolist())

    def raw(self) -> Any:
        """The framework's own object inside."""
        return self.pyfunc.get_raw_model()

    def probabilities(self) -> NativeModel | None:
        """The same model answering with probabilities, or None when it does so already or cannot."""
        if self.predict_fn != "predict" or not hasattr(self.raw(), "predict_proba"):
            return None
        return replace(self, method="predict_proba")

    def predict(self, rows: Rows) -> Answer:
        """The model's answer for rows, with MLflow's checks of the signature.

        Raises:
            Exception: whatever the model raises for rows that it refuses.
        """
        with quiet():
            given = self.as_input(rows)
            answer = getattr(self.raw(), self.method)(given) if self.method else self.pyfunc.predict(given)
        return as_answer(answer)

    def as_input(self, rows: Rows) -> pd.DataFrame | np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
        """Rows in the form that MLflow's scoring server hands to the model."""
        if not isinstance(rows, Mapping):
            return rows
        return rows[""] if self.tensor is not None else dict(rows)

    def conform(self, data: Any) -> Rows:
        """The inputs of the signature, in order, with the dtypes that a parsed request has.

        Args:
            data: a DataFrame; for a model of tensors also an array or a mapping of arrays.

        Raises:
            ValueError: a required input is missing, or its values do not fit the signature's type.
        """
        if self.tensors:
            from mlflow_deploy.conversion.rows import tensors_from

            return tensors_from(data, self.tensors)
        missing = [column.name for column in self.columns if column.required and column.name not in data]
        if missing:
            raise ValueError(f"column {missing[0]!r} of the model's signature is missing")
        import pandas as pd

        columns = {
            column.name: _conform_column(data[column.name], column)
            for column in self.columns
            if column.name in data
        }
        return pd.DataFrame(columns).reset_index(drop=True)


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
            ".*The given NumPy array is not writ.*",
            ".*looks like a TorchScript archive.*",
            r".*`torch\.jit\.\w+` is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        with _without_progress_bars():
            yield


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep Keras, where it is loaded, from drawing a bar for every call."""
    keras: Any = sys.modules.get("keras")
    drawing = keras is not None and keras.config.is_interactive_logging_enabled()
    if drawing:
        keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if drawing:
            keras.config.enable_interactive_logging()


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
    columns, tensors = _inputs(meta)
    return NativeModel(folder=folder, meta=meta, pyfunc=pyfunc, columns=columns, tensors=tensors)


def _inputs(meta: Model) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    from mlflow.types.schema import DataType

    schema = meta.get_input_schema()
    if schema is None:
        return (), ()
    if schema.is_tensor_spec():
        specs = schema.inputs
        if len(specs) > 1 and not all(spec.name for spec in specs):
            return (), ()
        return (), tuple(
            Tensor(
                dtype="str" if spec.type.kind in "OUS" else spec.type.name,
                shape=tuple(int(size) for size in spec.shape),
                name=spec.name or "",
            )
            for spec in specs
        )
    if not schema.has_input_names():
        return (), ()
    columns = tuple(
        Column(
            name=str(spec.name),
            type=spec.type.name if isinstance(spec.type, DataType) else "other",
            required=bool(spec.required),
        )
        for spec in schema.inputs
    )
    return columns, ()


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


def example_rows(native: NativeModel) -> Rows | None:
    """The model's input example as rows, or None when it has none.

    Raises:
        ValueError: the example does not fit the signature.
    """
    import pandas as pd

    if not native.meta.saved_input_example_info:
        return None
    example: Any = native.meta.load_input_example(str(native.folder))
    if isinstance(example, pd.DataFrame) or (native.tensors and isinstance(example, (np.ndarray, Mapping))):
        return native.conform(example)
    if isinstance(example, np.ndarray):
        return native.conform(pd.DataFrame(example.reshape(len(example), -1)))
    raise ValueError(f"the input example is a {type(example).__name__}, not rows")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
