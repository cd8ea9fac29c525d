"""Boosters saved with the MLflow flavor of their library, and models converted in other processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
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


def in_two_processes(script: str, work: Path, *arguments: Path) -> list[str]:
    """What a program prints in two processes that hash differently; each gets a place under `work` to make."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(work / seed), *map(str, arguments)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    printed = []
    for process in started:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]
        printed.append(out)
    return printed
