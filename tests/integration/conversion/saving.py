"""Boosters saved with the MLflow flavor of their library."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightgbm
import mlflow.lightgbm
import mlflow.xgboost
import pytest
import xgboost
from mlflow.models import infer_signature


def native_answer(model: Any, inputs: Any, method: str = "predict") -> Any:
    """What the library itself answers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*feature names.*")
        if isinstance(model, xgboost.Booster):
            return model.predict(xgboost.DMatrix(inputs))
        return getattr(model, method)(inputs)


def save_booster(model: Any, inputs: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save with signature and input example, and return the folder."""
    monkeypatch.setattr(logging.getLogger("mlflow.lightgbm"), "level", logging.ERROR)
    flavor = mlflow.lightgbm if isinstance(model, lightgbm.LGBMModel | lightgbm.Booster) else mlflow.xgboost
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*integer column.*")
        warnings.filterwarnings("ignore", message=".*[Pp]ickle.*")
        flavor.save_model(
            model,
            str(folder),
            signature=infer_signature(inputs, native_answer(model, inputs[:5])),
            input_example=inputs[:20],
            pip_requirements=[type(model).__module__.partition(".")[0]],
        )
    return folder
