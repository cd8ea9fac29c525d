"""Bundles of small real models for the serving tests, made with skl2onnx and MLflow."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy.bundle import Bundle, Feed, ModelSource, Output, Servable, write_bundle


def signature_document(signature: Any) -> dict[str, Any] | None:
    """The signature as a bundle holds it."""
    if signature is None:
        return None
    return {key: json.loads(value) if value else None for key, value in signature.to_dict().items()}


def save_sklearn(model: Any, path: Path, signature: Any, **options: Any) -> Path:
    """Save a model with MLflow's sklearn flavor."""
    import mlflow.sklearn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            model,
            path,
            signature=signature,
            serialization_format="cloudpickle",
            pip_requirements=[],
            **options,
        )
    return path


def save_python(model: Any, path: Path, signature: Any) -> Path:
    """Save a PythonModel."""
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(path, python_model=model, signature=signature, pip_requirements=[])
    return path


def to_onnx(model: Any, initial_types: list[Any], path: Path, **options: Any) -> Path:
    """Convert with skl2onnx to a folder that holds model.onnx."""
    from skl2onnx import to_onnx as convert

    path.mkdir(parents=True, exist_ok=True)
    graph = convert(model, initial_types=initial_types, target_opset={"": 21, "ai.onnx.ml": 3}, **options)
    (path / "model.onnx").write_bytes(graph.SerializeToString())
    return path


def onnx_bundle(
    store: Path, content: Path, signature: Any, *, example: dict[str, Any] | None = None, **servable: Any
) -> Bundle:
    """A bundle around model.onnx in the folder `content`."""
    return write_bundle(
        store,
        model=ModelSource(uri="models:/zoo/1", name="zoo", version="1"),
        servable=Servable(kind="onnx", path="servable/model.onnx", **servable),
        content=content,
        documents={"signature.json": signature_document(signature), "example.json": example},
    )


def pyfunc_bundle(store: Path, model_path: Path, signature: Any) -> Bundle:
    """A bundle around an MLflow model folder."""
    return write_bundle(
        store,
        model=ModelSource(uri="models:/zoo/1", name="zoo", version="1"),
        servable=Servable(kind="pyfunc", path="servable", batchable=False),
        content=model_path,
        documents={"signature.json": signature_document(signature)},
    )


COLUMNS = [f"c{i:02d}" for i in range(30)]


def training_table(rows: int = 400) -> tuple[pd.DataFrame, np.ndarray]:
    """Thirty double columns and a binary target that depends on them."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return pd.DataFrame(data.data[:rows], columns=COLUMNS), data.target[:rows]


def boosting(folder: Path) -> tuple[Path, Bundle]:
    """StandardScaler + GradientBoosting on 30 double columns: the MLflow model and its ONNX bundle."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, target = training_table()
    model = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=30, random_state=0))
    model.fit(table, target)
    signature = infer_signature(table, model.predict(table))
    native = save_sklearn(model, folder / "boosting", signature)
    content = to_onnx(
        model, [("X", FloatTensorType([None, 30]))], folder / "boosting-onnx", options={"zipmap": False}
    )
    row = table.head(1)
    example = {
        "request": {"dataframe_split": row.to_dict(orient="split")},
        "predictions": model.predict(row).tolist(),
    }
    bundle = onnx_bundle(
        folder / "store",
        content,
        signature,
        example=example,
        feeds=(Feed(name="X", dtype="float32", columns=tuple(COLUMNS), shape=(-1, 30), accepts="finite"),),
        outputs=(Output(name="label", dtype="int64"),),
    )
    return native, bundle


def linear(folder: Path) -> tuple[Path, Bundle]:
    """LogisticRegression on one unnamed tensor [-1, 30]."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    table, target = training_table()
    matrix = (table.to_numpy() - table.to_numpy().mean(0)) / table.to_numpy().std(0)
    model = LogisticRegression().fit(matrix, target)
    signature = infer_signature(matrix, model.predict(matrix))
    native = save_sklearn(model, folder / "linear", signature)
    content = to_onnx(
        model, [("X", FloatTensorType([None, 30]))], folder / "linear-onnx", options={"zipmap": False}
    )
    bundle = onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(Feed(name="X", dtype="float32", tensor="", shape=(-1, 30), accepts="finite"),),
        outputs=(Output(name="label", dtype="int64"),),
    )
    return native, bundle


def copy_into(path: Path) -> Path:
    """A writable copy of a bundle's folder, to damage it."""
    target = Path(tempfile.mkdtemp()) / path.name
    shutil.copytree(path, target)
    return target


def network_bundles(root: Path, frameworks: Mapping[str, str]) -> dict[str, Bundle]:
    """A network as a bundle of each form.

    Args:
        frameworks: form -> torch or keras, of which it is made.
    """
    from mlflow_deploy.conversion import make_servable
    from tests.integration.conversion.nets import keras_model, save_keras, save_torch, torch_model

    models = {
        "torch": save_torch(*torch_model("MLP"), root / "torch"),
        "keras": save_keras(*keras_model("MLP"), root / "keras"),
    }
    found = {}
    for form, framework in frameworks.items():
        (root / form).mkdir()
        made = make_servable(models[framework], root / form, format=form)
        found[form] = write_bundle(
            root / "store",
            model=ModelSource(uri="models:/net/1", name="net", version="1"),
            servable=made.servable,
            content=made.content,
            documents={"signature.json": made.signature, "example.json": made.example},
        )
    return found
