"""MLflow flavor for TFLite models: served by LiteRT without TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConversionError, MissingExtra
from mlflow_deploy.flavors import base
from mlflow_deploy.flavors.base import Form, LogOptions, Port, SaveOptions
from mlflow_deploy.flavors.pyfunc import FormModel, load_pyfunc

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.serving.values import Array

FLAVOR_NAME = "mlflow_deploy.tflite"

_SIGNATURE = "serving_default"


def save_model(
    model: Any, path: str | Path, *, precision: str = "fp32", **options: Unpack[SaveOptions]
) -> None:
    """Save a TFLite model in MLflow's format.

    Args:
        model: the bytes of a TFLite model, or the path of a .tflite file; or a model to be converted: a
            Keras model with `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        precision: fp32, fp16, int8, or auto for the fastest that passes; of a model that is converted.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
        ConfigError: a precision that is not known, or for what is already TFLite.
    """
    base.save(FORM, model, path, options, precision=precision)


def log_model(model: Any, *, precision: str = "fp32", **options: Unpack[LogOptions]) -> ModelInfo:
    """Log a TFLite model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(sys.modules[__name__], model, options, precision=precision)


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The LiteRT `Interpreter` of a model."""
    return _open(base.load_form(model_uri, FORM.name, dst_path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements() -> list[str]:
    """What models of this flavor need: this package and LiteRT."""
    return base.default_requirements(FORM)


def get_default_conda_env() -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(FORM)


# --- the form ----------------------------------------------------------------------------------------------


def _takes(model: Any) -> bool:
    if isinstance(model, str | Path):
        return Path(model).suffix == ".tflite"
    return isinstance(model, bytes)


def _write(model: Any, path: Path) -> None:
    path.write_bytes(model if isinstance(model, bytes) else Path(model).read_bytes())


def _interpreter(path: Path) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise MissingExtra("The TFLite form", "tflite", missing="ai-edge-litert") from error
    try:
        return Interpreter(model_path=str(path), num_threads=1)
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise ConversionError("LiteRT cannot load the TFLite model", why=why) from error


def _signature(path: Path) -> Any:
    interpreter = _interpreter(path)
    known = list(interpreter.get_signature_list())
    if _SIGNATURE not in known:
        raise ConversionError(
            f"The TFLite model has no signature {_SIGNATURE!r}",
            why=f"it has {', '.join(known) or 'none'}, so its inputs and outputs have no names",
            hint="Convert it with tf.lite.TFLiteConverter.from_saved_model",
        )
    return interpreter.get_signature_runner(_SIGNATURE)


def _inputs(path: Path) -> Sequence[Port]:
    return [_port(name, item) for name, item in _signature(path).get_input_details().items()]


def _outputs(path: Path, _: Mapping[str, Array] | None) -> Sequence[Port]:
    return [_port(name, item) for name, item in _signature(path).get_output_details().items()]


def _port(name: str, details: Mapping[str, Any]) -> Port:
    kind = np.dtype(details["dtype"])
    sizes = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    shape = tuple(int(size) for size in sizes)
    # A model of one row is run row by row.
    return Port(
        name, "str" if kind.kind in "OSU" else kind.name, (-1, *shape[1:]) if shape[:1] == (1,) else shape
    )


def _open(bundle: Bundle) -> Any:
    return _interpreter(bundle.servable_path)


FORM = Form(
    name="tflite",
    file="model.tflite",
    extra="tflite",
    packages=("ai-edge-litert",),
    requirements=("numpy", "ai-edge-litert>=2.1"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
