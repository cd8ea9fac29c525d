"""Bundles to put into images: versions of a registered ONNX model, and MLflow models as pyfunc."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
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


def shared_requirements() -> list[str]:
    """What the models of the tests ask for, as a team with one environment does; they share one runtime."""
    names = ("mlflow", "scikit-learn", "skops", "numpy", "pandas", "scipy", "keras")
    # Without "+cpu", which no package index has.
    return [*pins(*names), pins("torch")[0].partition("+")[0]]


def torch_model(folder: Path) -> Bundle:
    """A torch network that doubles the column `a`."""
    import mlflow.pytorch
    import torch

    doubler = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))
    with torch.no_grad():
        doubler[0].weight.fill_(2.0)
        doubler[0].bias.fill_(0.0)
    frame = pd.DataFrame({"a": np.arange(4, dtype=np.float32)})
    save = partial(mlflow.pytorch.save_model, serialization_format="pickle")
    return pyfunc(folder, save, doubler, frame, [0.0], shared_requirements())


def keras_model(folder: Path) -> Bundle:
    """A Keras network that doubles the column `a`, saved by a process that runs Keras on torch."""
    code = (
        "import sys, keras, mlflow.keras, numpy as np\n"
        "from mlflow.models import infer_signature\n"
        "rows = np.arange(4, dtype=np.float32).reshape(4, 1)\n"
        "model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False)])\n"
        "model.layers[0].set_weights([np.array([[2.0]], dtype=np.float32)])\n"
        "signature = infer_signature(rows, model.predict(rows))\n"
        "mlflow.keras.save_model(model, sys.argv[1], signature=signature, pip_requirements=sys.argv[2:])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder / "model"), *shared_requirements()]
    subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": "torch"}, capture_output=True)
    rows = [[0.0], [1.0], [2.0], [3.0]]
    return write_bundle(
        folder / "store",
        model=ModelSource(uri=f"file://{folder.name}", name=folder.name),
        servable=Servable(kind="pyfunc", path="servable", requirements=tuple(shared_requirements())),
        content=folder / "model",
        documents={
            "signature.json": {
                "inputs": [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 1]}}],
                "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 1]}}],
                "params": None,
            },
            "example.json": {"request": {"inputs": rows}, "predictions": [[0.0], [2.0], [4.0], [6.0]]},
        },
    )


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
        shared_requirements(),
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
