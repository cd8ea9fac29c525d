"""Runs any MLflow model in-process through MLflow itself, so that its answers are MLflow's own."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.backends.base import Call, TensorInfo
from mlflow_deploy.serving.bodies import decode_document
from mlflow_deploy.serving.errors import BadRequest, InvalidValue, RequestError, TooLarge
from mlflow_deploy.serving.signature import NUMPY_TYPES, parse_signature
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


def load(bundle: Bundle, settings: ServingSettings) -> PyfuncModel:
    """Load the MLflow model in the bundle.

    Raises:
        MissingExtra: MLflow's pyfunc needs a package that is not installed.
    """
    # MLflow itself sets this in its scoring server; some flavors load differently under it.
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    try:
        import mlflow.pyfunc
        import mlflow.pyfunc.scoring_server
        from mlflow.models import Model
    except ImportError as error:
        raise MissingExtra("The pyfunc form", "sklearn", missing=error.name or "mlflow") from error
    folder = os.fspath(bundle.servable_path)
    # Keras decides at its import what it runs on, and MLflow leaves that to the environment.
    if backend := Model.load(folder).flavors.get("keras", {}).get("keras_backend"):
        os.environ.setdefault("KERAS_BACKEND", backend)
    return PyfuncModel(mlflow.pyfunc.load_model(folder), bundle, settings)


class PyfuncModel:
    """An MLflow model behind the data plane's interface."""

    providers: tuple[str, ...] = ("python",)
    interruptible = False

    def __init__(self, model: Any, bundle: Bundle, settings: ServingSettings) -> None:
        self.signature = parse_signature(bundle.document("signature.json"))
        self._model = model
        self._schema = model.metadata.get_input_schema()
        self._max_rows = settings.max_rows
        self.inputs = self._describe(outputs=False)
        self.outputs = self._describe(outputs=True) or (TensorInfo("predictions", "float64", (-1,)),)

    def _describe(self, *, outputs: bool) -> tuple[TensorInfo, ...]:
        if self.signature is None:
            return () if outputs else (TensorInfo("inputs", "float64", (-1, -1)),)
        columns = self.signature.output_columns if outputs else self.signature.columns
        tensors = self.signature.output_tensors if outputs else self.signature.tensors
        plain = "predictions" if outputs else "inputs"
        infos = [TensorInfo(t.name or plain, t.dtype, t.shape) for t in tensors]
        for at, column in enumerate(columns):
            dtype = NUMPY_TYPES.get(column.type, "str")
            dtype = "str" if dtype.startswith("datetime") else dtype
            infos.append(
                TensorInfo(column.name or (plain if outputs else str(at)), dtype, (-1,), column.required)
            )
        return tuple(infos)

    def expire(self, now: float) -> None:
        """Python code cannot be ended from outside; the data plane answers without it."""

    # --- requests ------------------------------------------------------------------------------------------

    def parse_json(self, body: bytes) -> Call:
        from mlflow.pyfunc import scoring_server

        document = decode_document(body)
        if not isinstance(document, dict):
            raise BadRequest("The body must be a JSON object")
        with _caller_fault("The body cannot be read as one of MLflow's input forms"):
            parsed = scoring_server._parse_json_data(document, self._model.metadata, self._schema)
        return self._call(parsed.data, parsed.params, parsed.is_unified_llm_input)

    def parse_csv(self, body: bytes) -> Call:
        from mlflow.pyfunc import scoring_server

        with _caller_fault("The body is not CSV that fits the model"):
            data = scoring_server.parse_csv_input(io.StringIO(body.decode()), self._schema)
        return self._call(data, None, False)

    def parse_parquet(self, body: bytes) -> Call:
        from mlflow.pyfunc import scoring_server

        with _caller_fault("The body is not a readable Parquet file"):
            data = scoring_server.parse_parquet_input(io.BytesIO(body))
        return self._call(data, None, False)

    def parse_tensors(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Call:
        missing = [info.name for info in self.inputs if info.required and info.name not in tensors]
        if missing:
            raise InvalidValue(f"Model is missing inputs {missing}")
        if self.signature is not None and self.signature.columns:
            data = self._frame(tensors)
        else:
            data = {info.name: tensors[info.name] for info in self.inputs}
            if self.signature is None or not self.signature.tensors[0].name:
                data = data["inputs"]
        return self._call(data, dict(params) or None, False)

    def _frame(self, tensors: Mapping[str, Array]) -> Any:
        """A DataFrame that MLflow's own reader makes, so that the columns get the signature's types."""
        from mlflow.utils.proto_json_utils import dataframe_from_parsed_json

        from mlflow_deploy.serving.backends.graph import flat

        columns = {
            info.name: flat(info.name, tensors[info.name]).tolist()
            for info in self.inputs
            if info.name in tensors
        }
        if len({len(values) for values in columns.values()}) > 1:
            raise InvalidValue("The columns differ in length")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        names: list[Any] = list(columns)
        if self.signature is not None and not self.signature.named:
            names = list(range(len(names)))
        with _caller_fault("The columns do not fit the model's signature"):
            split = {"columns": names, "data": rows}
            return dataframe_from_parsed_json(split, "split", self._schema)

    def _call(self, data: Any, params: Any, bare: bool) -> Call:
        rows = _rows(data)
        if rows > self._max_rows:
            raise TooLarge(f"The request has {rows} rows, more than the {self._max_rows} that are allowed")
        return Call((data, params, bare), rows)

    # --- answers -------------------------------------------------------------------------------------------

    def run(self, call: Call) -> Any:
        data, params, bare = call.data
        try:
            return bare, self._model.predict(data, params=params)
        except Exception as error:
            if _in_schema_check(error.__traceback__):
                raise InvalidValue(
                    "The request does not fit the model's signature", hint="Compare it with /openapi.json"
                ) from error
            raise

    def to_json(self, result: Any) -> bytes:
        from mlflow.pyfunc import scoring_server

        bare, predictions = result
        out = io.StringIO()
        write = scoring_server.unwrapped_predictions_to_json if bare else scoring_server.predictions_to_json
        write(predictions, out)  # type: ignore[no-untyped-call]
        return out.getvalue().encode()

    def to_tensors(self, result: Any) -> list[tuple[str, Array]]:
        import pandas as pd

        _, predictions = result
        if isinstance(predictions, pd.DataFrame):
            return [(str(name), _plain(predictions[name].to_numpy())) for name in predictions.columns]
        if isinstance(predictions, Mapping):
            return [(str(name), _plain(np.asarray(value))) for name, value in predictions.items()]
        return [("predictions", _plain(np.asarray(predictions)))]


def _plain(array: Array) -> Array:
    """Objects as text, since a tensor has no other type for them."""
    if array.dtype.kind in "biufSU":
        return array
    return np.array([str(value) for value in array.ravel()], object).reshape(array.shape)


def _rows(data: Any) -> int:
    if isinstance(data, Mapping):
        sizes = [len(value) for value in data.values() if hasattr(value, "__len__")]
        return max(sizes, default=1)
    return len(data) if hasattr(data, "__len__") and not isinstance(data, str | bytes) else 1


def _in_schema_check(traceback: TracebackType | None) -> bool:
    """Whether MLflow's validation of the input raised, rather than the model."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "_validate_prediction_input":
            return True
        traceback = traceback.tb_next
    return False


@contextlib.contextmanager
def _caller_fault(what: str) -> Iterator[None]:
    """Turn what MLflow's readers raise into a BadRequest that does not repeat the caller's data."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise BadRequest(what, hint="Compare it with /openapi.json") from error
