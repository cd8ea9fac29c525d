"""MLflow flavor for TensorFlow SavedModels: served by TensorFlow without Keras and the code of the model."""

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

FLAVOR_NAME = "mlflow_deploy.savedmodel"


def save_model(model: Any, path: str | Path, **options: Unpack[SaveOptions]) -> None:
    """Save a SavedModel model in MLflow's format.

    Args:
        model: the folder of a SavedModel, a `tf.Module` with a `serving_default` signature; or a model to
            be converted: a Keras model with `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
    """
    base.save(FORM, model, path, options)


def log_model(model: Any, **options: Unpack[LogOptions]) -> ModelInfo:
    """Log a SavedModel model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(sys.modules[__name__], model, options)


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The object that `tf.saved_model.load` makes of a model."""
    return _open(base.load_form(model_uri, FORM.name, dst_path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements() -> list[str]:
    """What models of this flavor need: this package and TensorFlow."""
    return base.default_requirements(FORM)


def get_default_conda_env() -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(FORM)


# --- the form ----------------------------------------------------------------------------------------------


_SIGNATURE = "serving_default"


def _takes(model: Any) -> bool:
    if isinstance(model, str | Path):
        return (Path(model) / "saved_model.pb").is_file()
    # Keras models are tf.Modules too, but are converted, with parity.
    roots = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    return "tensorflow" in roots and "keras" not in roots


def _write(model: Any, path: Path) -> None:
    import shutil

    if isinstance(model, str | Path):
        shutil.copytree(model, path, ignore=shutil.ignore_patterns("fingerprint.pb", "keras_metadata.pb"))
        return
    import tensorflow as tf

    tf.saved_model.save(model, str(path), signatures=getattr(model, "signatures", None) or None)


def _signature(path: Path) -> Any:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    if _SIGNATURE not in loaded.signatures:
        raise ConversionError(
            f"The SavedModel has no signature {_SIGNATURE!r}",
            why=f"it has {', '.join(loaded.signatures) or 'none'}",
            hint="Save it with tf.saved_model.save(model, path, signatures={'serving_default': function})",
        )
    return loaded.signatures[_SIGNATURE]


def _inputs(path: Path) -> Sequence[Port]:
    return [_port(name, spec) for name, spec in _signature(path).structured_input_signature[1].items()]


def _outputs(path: Path, _: Mapping[str, Array] | None) -> Sequence[Port]:
    return [_port(name, spec) for name, spec in _signature(path).structured_outputs.items()]


def _port(name: str, spec: Any) -> Port:
    dtype = "str" if spec.dtype.name == "string" else spec.dtype.name
    if spec.shape.rank is None:
        return Port(name, dtype)
    return Port(name, dtype, tuple(-1 if size is None else int(size) for size in spec.shape))


def _open(bundle: Bundle) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(bundle.servable_path))


FORM = Form(
    name="savedmodel",
    file="saved_model",
    extra="tensorflow",
    packages=("tensorflow",),
    requirements=("numpy", "tensorflow-cpu>=2.21"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
