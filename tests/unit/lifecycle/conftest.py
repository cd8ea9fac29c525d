"""Small models in folders, and a target without processes that deploys them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.targets.memory import MemoryTarget


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of three linear models that answer differently."""
    import mlflow
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    rows = pd.DataFrame({"x": np.arange(8.0)})
    folder = tmp_path_factory.mktemp("models")
    for slope in (1, 2, 3):
        model = LinearRegression().fit(rows, rows["x"] * slope)
        mlflow.sklearn.save_model(
            model, folder / str(slope), input_example=rows.head(2), pip_requirements=["scikit-learn"]
        )
    return [str(folder / str(slope)) for slope in (1, 2, 3)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A memory target, with a private state folder for its bundles."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    return MemoryTarget()


def quiet(_line: str) -> None:
    """Show no progress."""
