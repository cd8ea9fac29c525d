"""scikit-learn models as skops, which runs no code when it is loaded: MLflow's own flavor, filled in.

MLflow refuses to save forests and column transformers as skops until every type that skops does not trust by
itself is named. Here those of scikit-learn, numpy and scipy are named for you, and all others are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import ConversionError, MissingExtra

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

TRUSTED_PACKAGES = ("sklearn", "numpy", "scipy")
"""Packages whose types are trusted: whoever loads the model runs their code anyway."""


def save_model(model: Any, path: str | Path, *, trusted_types: Sequence[str] = (), **options: Any) -> None:
    """Save a fitted model as skops with MLflow's scikit-learn flavor.

    Args:
        model: a fitted scikit-learn estimator or pipeline.
        path: where to; must not exist or be empty.
        trusted_types: dotted names of other types in the model that you have read and trust.
        options: of `mlflow.sklearn.save_model`.

    Raises:
        ConversionError: the model holds types that are not trusted, or that skops cannot store.
    """
    import mlflow.sklearn

    mlflow.sklearn.save_model(model, str(path), **_skops(model, trusted_types), **options)


def log_model(model: Any, *, trusted_types: Sequence[str] = (), **options: Any) -> ModelInfo:
    """Log a fitted model as skops; arguments as of `save_model`, options of `mlflow.sklearn.log_model`."""
    import mlflow.sklearn

    info: ModelInfo = mlflow.sklearn.log_model(model, **_skops(model, trusted_types), **options)
    return info


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The estimator, with the types trusted that were named when it was saved."""
    import mlflow.sklearn

    return mlflow.sklearn.load_model(str(model_uri), dst_path)


def untrusted_types(model: Any) -> list[str]:
    """Dotted names of the types in a model that skops does not trust by itself.

    Raises:
        ConversionError: skops cannot store the model.
        MissingExtra: skops is not installed.
    """
    try:
        import skops.io
    except ModuleNotFoundError as error:
        raise MissingExtra("The skops format", "sklearn", missing="skops") from error
    try:
        return sorted(skops.io.get_untrusted_types(data=skops.io.dumps(model)))
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise ConversionError(
            f"A {type(model).__name__} cannot be stored as skops",
            why=why,
            hint="Use functions that can be imported in place of lambdas and local classes",
        ) from error


def _skops(model: Any, trusted_types: Sequence[str]) -> dict[str, Any]:
    found = untrusted_types(model)
    local = [name for name in found if "<" in name]
    if local:
        raise ConversionError(
            f"A {type(model).__name__} cannot be stored as skops",
            why=f"{', '.join(local)} has no name under which it could be found again",
            hint="Use functions and classes that can be imported in place of lambdas and local ones",
        )
    asked = [
        name for name in found if name.partition(".")[0] not in TRUSTED_PACKAGES and name not in trusted_types
    ]
    if asked:
        raise ConversionError(
            f"The {type(model).__name__} holds types that are not trusted: {', '.join(asked)}",
            why="loading the model would run their code",
            hint=f"Read them, then give trusted_types={asked!r}",
        )
    return {"serialization_format": "skops", "skops_trusted_types": found}
