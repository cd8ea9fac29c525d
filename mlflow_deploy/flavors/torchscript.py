"""MLflow flavor for TorchScript modules: served by PyTorch without the Python code of the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConversionError
from mlflow_deploy.flavors import base
from mlflow_deploy.flavors.base import Form, LogOptions, Port, SaveOptions
from mlflow_deploy.flavors.pyfunc import FormModel, load_pyfunc

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.serving.values import Array

FLAVOR_NAME = "mlflow_deploy.torchscript"


def save_model(model: Any, path: str | Path, **options: Unpack[SaveOptions]) -> None:
    """Save a TorchScript model in MLflow's format.

    Args:
        model: a `torch.jit.ScriptModule`, or the path of a .ts, .pt or .pth file that holds one; or a model
            to be converted: a `torch.nn.Module` with `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
    """
    base.save(FORM, model, path, options)


def log_model(model: Any, **options: Unpack[LogOptions]) -> ModelInfo:
    """Log a TorchScript model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(sys.modules[__name__], model, options)


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The `torch.jit.ScriptModule` of a model, on the CPU."""
    return _open(base.load_form(model_uri, FORM.name, dst_path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements() -> list[str]:
    """What models of this flavor need: this package and PyTorch."""
    return base.default_requirements(FORM)


def get_default_conda_env() -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(FORM)


# --- the form ----------------------------------------------------------------------------------------------


_SUFFIXES = (".ts", ".pt", ".pth")


def _takes(model: Any) -> bool:
    if isinstance(model, str | Path):
        return Path(model).suffix in _SUFFIXES
    return type(model).__module__.startswith("torch.jit")


def _write(model: Any, path: Path) -> None:
    import torch

    from mlflow_deploy.conversion.torch_model import quiet

    module = _load(Path(model)) if isinstance(model, str | Path) else model
    with quiet():
        torch.jit.save(module, str(path))


def _load(path: Path) -> Any:
    import torch

    from mlflow_deploy.conversion.torch_model import quiet

    try:
        with quiet():
            loaded: Any = torch.jit.load  # it has no types
            return loaded(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ConversionError(
            f"{path.name} holds no TorchScript module",
            why=" ".join(str(error).split())[:200],
            hint="Give the torch.nn.Module itself with an input_example, or make it with torch.jit.script",
        ) from error


def _inputs(path: Path) -> Sequence[Port]:
    # The first argument is the module itself.
    return [Port(argument.name) for argument in _load(path).forward.schema.arguments[1:]]


def _outputs(path: Path, arrays: Mapping[str, Array] | None) -> Sequence[Port]:
    from mlflow_deploy.flavors.torch_outputs import outputs_of

    return outputs_of(_load(path), arrays)


def _open(bundle: Bundle) -> Any:
    return _load(bundle.servable_path)


FORM = Form(
    name="torchscript",
    file="model.ts",
    extra="torch",
    packages=("torch",),
    requirements=("numpy", "torch>=2.9"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
