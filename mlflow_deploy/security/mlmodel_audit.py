"""What an MLmodel file makes MLflow import, trust and read: loader modules, code, paths, trusted types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow_deploy.security.archives import leads_outside
from mlflow_deploy.security.pickle_globals import Global

_LOADERS = frozenset(
    f"mlflow.{name}"
    for name in (
        "catboost", "h2o", "keras", "lightgbm", "onnx", "paddle", "pmdarima", "prophet", "pyfunc.model",
        "pytorch", "sentence_transformers", "sklearn", "spacy", "spark", "statsmodels", "tensorflow",
        "transformers", "xgboost",
    )
) | frozenset(
    f"mlflow_deploy.flavors{name}"
    for name in ("", ".onnx", ".pmml", ".savedmodel", ".sealed", ".tflite", ".torch_export", ".torchscript")
)  # fmt: skip
_PATHS = (
    "artifact_path", "code", "data", "model_code_path", "model_config_path", "model_data", "model_path",
    "pickled_model", "python_model", "saved_model_dir",
)  # fmt: skip
_PICKLE_MODULES = ("mlflow.pytorch.pickle_module", "pickle", "cloudpickle", "cloudpickle.cloudpickle")


def flavors_of(document: Any) -> tuple[str, ...]:
    """Flavors that an MLmodel file names; none where it is damaged."""
    flavors = document.get("flavors") if isinstance(document, dict) else None
    return tuple(sorted(map(str, flavors))) if isinstance(flavors, dict) else ()


def pickles_of(document: Any) -> frozenset[str]:
    """Files that MLflow loads as pickles, whatever they are called."""
    found: set[str] = set()
    for settings in _settings(document):
        for key in ("pickled_model", "python_model"):
            # skops files are archives that are read by themselves.
            if isinstance(settings.get(key), str) and settings.get("serialization_format") != "skops":
                found.add(settings[key])
    return frozenset(found)


def audit_mlmodel(document: Any, allowed: frozenset[Global]) -> Iterator[tuple[str, str]]:
    """Rule and value of every setting that leads to code or out of the folder."""
    if not flavors_of(document):
        yield "mlmodel-unreadable", "it names no flavors"
    for settings in _settings(document):
        loader = settings.get("loader_module")
        if loader is not None and loader not in _LOADERS:
            yield "model-loader", str(loader)
        for key in ("code", "model_code_path"):
            if settings.get(key):
                yield "model-code", f"{key}: {settings[key]}"
        for key in _PATHS:
            value = settings.get(key)
            # Models from code keep where their file lay when they were logged; MLflow takes the name alone.
            if isinstance(value, str) and value and key != "model_code_path" and leads_outside(value):
                yield "model-path", f"{key}: {value}"
        trusted = settings.get("skops_trusted_types")
        for name in trusted if isinstance(trusted, list) else []:
            module, _, item = str(name).rpartition(".")
            if Global(module, item) not in allowed:
                yield "model-trust", str(name)


def audit_pickle_module(text: str) -> Iterator[tuple[str, str]]:
    """The module that PyTorch models are unpickled with, when it is none that is known."""
    if text.strip() not in _PICKLE_MODULES:
        yield "model-loader", text.strip()


def _settings(document: Any) -> list[dict[str, Any]]:
    flavors = document.get("flavors") if isinstance(document, dict) else None
    found = list(flavors.values()) if isinstance(flavors, dict) else []
    return [settings for settings in found if isinstance(settings, dict)]
