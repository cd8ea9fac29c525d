"""Bundles to put into images: versions of a registered ONNX model, and MLflow models as pyfunc."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy.bundle import Bundle, ModelSource, Servable, write_bundle
from tests.bundles import adder_bundle

MODEL = "Image Test"


def adder(folder: Path, version: int, *, run_id: str = "0123456789abcdef") -> Bundle:
    """Version N of a registered ONNX model, which adds N."""
    plain = adder_bundle(folder / "plain", folder / "work", float(version))
    return write_bundle(
        folder / "store",
        model=ModelSource(
            uri=f"models:/{MODEL}/{version}",
            name=MODEL,
            version=str(version),
            run_id=run_id,
            model_id="m-0123",
            digest="sha256-" + "0" * 64,
        ),
        servable=plain.manifest.servable,
        content=plain.path / "servable",
        documents={name: plain.document(name) for name in ("signature.json", "example.json")},
    )


def pins(*names: str) -> list[str]:
    """Requirement lines of what is installed here."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def sklearn_model(folder: Path) -> Bundle:
    """A scikit-learn pipeline that doubles the column `a`."""
    import mlflow.sklearn
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frame = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0)[::-1] ** 2})
    model = make_pipeline(StandardScaler(), LinearRegression()).fit(frame, frame["a"] * 2)
    return pyfunc(
        folder,
        mlflow.sklearn.save_model,
        model,
        frame,
        model.predict(frame.head(1)).tolist(),
        pins("mlflow", "scikit-learn", "skops", "numpy", "pandas", "scipy"),
    )


def pyfunc(
    folder: Path,
    save: Callable[..., None],
    model: Any,
    frame: pd.DataFrame,
    answer: list[Any],
    requirements: Sequence[str],
) -> Bundle:
    """Save a model with an MLflow flavor and bundle it as it is."""
    from mlflow.models import infer_signature

    signature = infer_signature(frame, np.array(answer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(model, path=folder / "model", signature=signature, pip_requirements=list(requirements))
    split = json.loads(frame.head(1).to_json(orient="split", index=False))
    return write_bundle(
        folder / "store",
        model=ModelSource(uri=f"file://{folder.name}", name=folder.name),
        servable=Servable(kind="pyfunc", path="servable", requirements=tuple(requirements)),
        content=folder / "model",
        documents={
            "signature.json": {
                key: json.loads(value) if value else None for key, value in signature.to_dict().items()
            },
            "example.json": {"request": {"dataframe_split": split}, "predictions": answer},
        },
    )
