"""MLflow flavor for exported PyTorch programs (.pt2): served by PyTorch without the code of the model."""

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

FLAVOR_NAME = "mlflow_deploy.torch_export"


def save_model(model: Any, path: str | Path, **options: Unpack[SaveOptions]) -> None:
    """Save an exported model in MLflow's format.

    Args:
        model: a `torch.export.ExportedProgram`, or the path of a .pt2 file; or a model to be converted: a
            `torch.nn.Module` with `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
    """
    base.save(FORM, model, path, options)


def log_model(model: Any, **options: Unpack[LogOptions]) -> ModelInfo:
    """Log an exported model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(sys.modules[__name__], model, options)


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The `torch.export.ExportedProgram` of a model; its `module()` computes."""
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


def _takes(model: Any) -> bool:
    if isinstance(model, str | Path):
        return Path(model).suffix == ".pt2"
    return type(model).__name__ == "ExportedProgram"


def _write(model: Any, path: Path) -> None:
    import torch

    from mlflow_deploy.conversion.torch_model import quiet

    program = _load(Path(model)) if isinstance(model, str | Path) else model
    with quiet():
        torch.export.save(program, str(path))


def _load(path: Path) -> Any:
    import torch

    from mlflow_deploy.conversion.torch_model import quiet

    try:
        with quiet():
            return torch.export.load(str(path))
    except Exception as error:
        raise ConversionError(
            f"{path.name} holds no exported program",
            why=" ".join(str(error).split())[:200],
            hint="Make it with torch.export.save, of the PyTorch version that serves it",
        ) from error


def _inputs(path: Path) -> Sequence[Port]:
    program = _load(path)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [_port(name, values[name]) for name in program.graph_signature.user_inputs]


def _port(name: str, value: Any) -> Port:
    # Sizes that are not numbers are symbols: free dimensions.
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return Port(name, str(value.dtype).removeprefix("torch."), shape)


def _outputs(path: Path, arrays: Mapping[str, Array] | None) -> Sequence[Port]:
    from mlflow_deploy.flavors.torch_outputs import outputs_of

    return outputs_of(_load(path).module(), arrays)


def _open(bundle: Bundle) -> Any:
    return _load(bundle.servable_path)


FORM = Form(
    name="torch_export",
    file="model.pt2",
    extra="torch",
    packages=("torch",),
    requirements=("numpy", "torch>=2.9"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
