"""Models saved with MLflow for the conversion tests."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.sklearn
import pytest
from mlflow.models import infer_signature

SaveModel = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SaveModel:
    """Saves a fitted model with signature and input example, and returns its folder."""
    # The tests fit the models that they load, so pickle holds nothing foreign.
    monkeypatch.setattr(logging.getLogger("mlflow.sklearn"), "level", logging.ERROR)

    def save_model(model: Any, inputs: Any, method: str = "predict", **settings: Any) -> Path:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*integer column.*")
            warnings.filterwarnings("ignore", message=".*[Pp]ickle.*")
            signature = infer_signature(inputs, getattr(model, method)(inputs[:5]))
            arguments = {
                "signature": signature,
                "input_example": inputs[:20],
                "serialization_format": "cloudpickle",
                "pip_requirements": ["scikit-learn"],
                "pyfunc_predict_fn": method,
            }
            mlflow.sklearn.save_model(model, str(folder), **(arguments | settings))
        return folder

    return save_model


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder for converted files."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder
