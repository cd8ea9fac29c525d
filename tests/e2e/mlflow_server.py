"""A real `mlflow server` on a copy of the tests' store, and small models registered in it."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import requests
from sklearn.linear_model import LinearRegression

from tests.waiting import eventually


@contextlib.contextmanager
def serving(
    app: str, folder: Path, tracking: str, model: str, factors: tuple[int, ...], env: Mapping[str, str]
) -> Iterator[str]:
    """Run the server with a registered model whose versions answer x times a factor; gives its URI.

    While it starts, which takes longest, the versions are written straight into its store.

    Args:
        app: of `--app-name`.
        tracking: SQLite store of the tests: making the tables anew takes longer than all the rest.
        env: environment of the server, besides this one's.
    """
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with (
        contextlib.closing(sqlite3.connect(tracking.removeprefix("sqlite:///"))) as made,
        contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as copy,
    ):
        made.backup(copy)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--app-name", app, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # The server looks for its store by arguments alone.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_URI")}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**environment, **env}, start_new_session=True
        )
    try:
        _use(store)
        mlflow.create_experiment("training", artifact_location=(folder / "trained").as_uri())
        mlflow.set_experiment("training")
        for factor in factors:
            register(model, factor)
        uri = f"http://127.0.0.1:{port}"
        eventually(lambda: _is_up(uri), 120, "the MLflow server is up")
        _use(uri)
        # Its artifacts go through the server, as those of people do.
        mlflow.set_experiment("served")
        yield uri
    finally:
        _use(tracking)
        mlflow.set_experiment("tests")
        os.killpg(server.pid, 9)
        server.wait()


def register(model: str, factor: int) -> None:
    """Log and register a version that answers x times a factor."""
    rows = pd.DataFrame({"x": np.arange(8.0)})
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            LinearRegression().fit(rows, rows["x"] * factor),
            name="model",
            input_example=rows,
            registered_model_name=model,
            pip_requirements=["scikit-learn"],
        )


def _use(uri: str) -> None:
    """For this process and, since MLflow sets only some of the variables itself, for those it starts."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    os.environ.update(MLFLOW_TRACKING_URI=uri, MLFLOW_REGISTRY_URI=uri)


def _is_up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False
