"""Fitted models of the frameworks, saved with MLflow's own flavors to be converted and compared."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from mlflow_deploy.conversion.native import quiet
from mlflow_deploy.errors import ConversionError, MissingExtra

_FLAVORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # The folder is read again at once, by the process that wrote it, so that pickles do no harm.
    "sklearn": ("mlflow.sklearn", "sklearn", {"serialization_format": "cloudpickle"}),
    "xgboost": ("mlflow.xgboost", "boosting", {}),
    "lightgbm": ("mlflow.lightgbm", "boosting", {}),
    "torch": ("mlflow.pytorch", "torch", {"serialization_format": "pickle"}),
    "keras": ("mlflow.tensorflow", "tensorflow", {}),
    "tensorflow": ("mlflow.tensorflow", "tensorflow", {}),
}
"""Root package of a model's class -> MLflow's flavor, our extra, and options of its `save_model`."""


def _root(model: Any) -> str:
    """The framework's package among the classes that a model inherits from, nearest first."""
    roots = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    return next((root for root in roots if root in _FLAVORS), "")


def is_native(model: Any) -> bool:
    """Whether a framework that MLflow has a flavor for made this model."""
    return bool(_root(model))


def save_native(model: Any, folder: Path, *, input_example: Any, signature: Any) -> Path:
    """Save a model with the flavor of its framework.

    Raises:
        ConversionError: there is neither an example nor a signature.
        MissingExtra: the framework's flavor cannot be imported.
    """
    name, extra, options = _FLAVORS[_root(model)]
    if input_example is None and signature is None:
        raise ConversionError(
            f"A {type(model).__name__} cannot be converted",
            why="what it takes is not known",
            hint="Give an input_example, a few rows are enough",
        )
    try:
        flavor = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"The flavor {name}", extra, missing=error.name or "") from error
    with quiet(), warnings.catch_warnings():
        # What Keras and PyTorch deprecate in themselves while they save is nothing that a user can change.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Requirements would be inferred by loading the model in another process; nobody reads them here.
        flavor.save_model(
            model,
            str(folder),
            input_example=input_example,
            signature=signature,
            pip_requirements=["mlflow"],
            **options,
        )
    return folder
