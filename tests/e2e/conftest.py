"""Fixtures of the stories: models in a registry, and helpers to look at processes from outside."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="session")
def iris_models(tracking: str) -> str:
    """Registered model `iris`: version 1 and 2 answer the three classes, each trained differently."""
    features, labels = load_iris(return_X_y=True, as_frame=True)
    for strength in (1.0, 0.01):
        model = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                model,
                name="model",
                input_example=features.head(3),
                registered_model_name="iris",
                pip_requirements=["scikit-learn"],
            )
    return "iris"


@pytest.fixture(scope="session")
def iris_rows() -> Any:
    """Four columns of doubles."""
    return load_iris(as_frame=True).data


def processes_of(home: Path) -> list[psutil.Process]:
    """All processes that were started for deployments in a state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
                found.extend(process.children(recursive=True))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return list({process.pid: process for process in found}.values())


def servers_of(home: Path) -> list[psutil.Process]:
    """The scoring servers among `processes_of`, each with its workers."""
    return [
        process
        for process in processes_of(home)
        if process.is_running() and "mlflow_deploy.serving" in " ".join(_cmdline(process))
    ]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def answers(url: str, rows: Any) -> bool:
    """Whether a deployment answers the rows with one prediction each."""
    body = {"dataframe_split": {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}}
    try:
        response = requests.post(f"{url}/invocations", json=body, timeout=5)
    except requests.RequestException:
        return False
    return response.status_code == 200 and len(response.json()["predictions"]) == len(rows)


def kill_all(home: Path) -> None:
    """Kill -9 every process of a state folder; some end by themselves as soon as others are gone."""
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
