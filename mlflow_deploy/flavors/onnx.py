"""MLflow flavor for ONNX models: served by ONNX Runtime, with session options and the proof of parity.

Unlike MLflow's own ONNX flavor it answers outputs in the shapes that the graph gives, takes DataFrames with
columns of several types, and leaves idle threads asleep.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError, ConversionError, MissingExtra, UnknownSetting
from mlflow_deploy.flavors import base
from mlflow_deploy.flavors.base import Form, LogOptions, Port, SaveOptions
from mlflow_deploy.flavors.pyfunc import FormModel, load_pyfunc

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.serving.values import Array

FLAVOR_NAME = "mlflow_deploy.onnx"

_EXTERNAL_BYTES = 1 << 30
"""Graphs larger than this keep their weights in a file beside them: one message holds 2 GiB at most."""
_LEVELS = ("disable", "basic", "extended", "layout", "all")


class SessionOptions(TypedDict, total=False):
    """How ONNX Runtime prepares the graph; threads are a matter of who serves it.

    `graph_optimization_level` is disable, basic, extended, layout or all; `disabled_optimizers` are names of
    optimizers to leave out; `config` are entries of ONNX Runtime's session configuration.
    """

    graph_optimization_level: str
    disabled_optimizers: list[str]
    config: dict[str, str]


def save_model(
    model: Any,
    path: str | Path,
    *,
    session_options: SessionOptions | None = None,
    precision: str = "fp32",
    **options: Unpack[SaveOptions],
) -> None:
    """Save an ONNX model in MLflow's format.

    Args:
        model: an `onnx.ModelProto`, its bytes, or the path of a .onnx file, with or without external data; or a
            model to be converted: a fitted model with `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        session_options: how ONNX Runtime prepares the graph.
        precision: fp32, fp16, int8, or auto for the fastest that passes; of a model that is converted.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
        ConfigError: a session option or precision that is not known, or a precision for what is already ONNX.
    """
    base.save(
        FORM,
        model,
        path,
        options,
        servable_options=_checked(session_options or {}),
        precision=precision,
    )


def log_model(
    model: Any,
    *,
    session_options: SessionOptions | None = None,
    precision: str = "fp32",
    **options: Unpack[LogOptions],
) -> ModelInfo:
    """Log an ONNX model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(
        sys.modules[__name__], model, options, session_options=session_options, precision=precision
    )


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The `onnxruntime.InferenceSession` of a model, with its session options."""
    return _open(base.load_form(model_uri, FORM.name, dst_path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements() -> list[str]:
    """What models of this flavor need: this package and ONNX Runtime."""
    return base.default_requirements(FORM)


def get_default_conda_env() -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(FORM)


# --- the form ----------------------------------------------------------------------------------------------


def _takes(model: Any) -> bool:
    if isinstance(model, str | Path):
        return Path(model).suffix == ".onnx"
    return isinstance(model, bytes) or type(model).__name__ == "ModelProto"


def _write(model: Any, path: Path) -> None:
    if isinstance(model, bytes):
        path.write_bytes(model)
        return
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra("Saving ONNX models", "sklearn", missing="onnx") from error
    if isinstance(model, str | Path):
        for name in _external_files(Path(model)):
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(model).parent / name, path.parent / name)
        shutil.copyfile(model, path)
    elif model.ByteSize() < _EXTERNAL_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def _external_files(path: Path) -> list[str]:
    """Files beside a graph that hold its weights.

    Raises:
        ConversionError: one of them is not beneath the graph's folder.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    graph = onnx.load_model(str(path), load_external_data=False)
    names = {
        ExternalDataInfo(tensor).location for tensor in _get_all_tensors(graph) if uses_external_data(tensor)
    }
    for name in names:
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise ConversionError(
                f"The ONNX model {path} keeps weights in {name!r}", why="that is outside its folder"
            )
    return sorted(names)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise ConversionError(
            "ONNX Runtime cannot load the model",
            why=why,
            hint="Export it with opset 21 or lower, IR version 10 and its weights at hand",
        ) from error


def _inputs(path: Path) -> Sequence[Port]:
    return [_port(item) for item in _session(path).get_inputs()]


def _outputs(path: Path, _: Mapping[str, Array] | None) -> Sequence[Port]:
    return [_port(item) for item in _session(path).get_outputs()]


_TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "string": "str", "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def _port(item: Any) -> Port:
    kind = str(item.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise ConversionError(
            f"{item.name!r} of the ONNX model is a {item.type}, which has no place in a request or answer",
            hint="Export scikit-learn models with zipmap=False, so that probabilities are an array",
        )
    # A graph that does not declare a shape has an empty one, as a scalar has.
    shape = tuple(size if isinstance(size, int) else -1 for size in item.shape) if item.shape else None
    return Port(item.name, _TYPES[kind], shape)


def _open(bundle: Bundle) -> Any:
    from mlflow_deploy.serving.backends.onnx import open_session
    from mlflow_deploy.settings import ServingSettings

    return open_session(bundle, ServingSettings())


def _checked(options: SessionOptions) -> dict[str, Any]:
    known = SessionOptions.__annotations__
    for key in options:
        if key not in known:
            raise UnknownSetting(key, known)
    level = options.get("graph_optimization_level", "all")
    if level not in _LEVELS:
        raise ConfigError(
            f"There is no graph_optimization_level {level!r}", hint=f"Use one of {', '.join(_LEVELS)}"
        )
    return dict(options)


FORM = Form(
    name="onnx",
    file="model.onnx",
    extra="sklearn",
    packages=("onnxruntime",),
    requirements=("numpy", "onnxruntime>=1.23"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
