"""Versions of one registered model, good and bad in each way, and a policy that tells them apart."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mlflow_deploy.targets.supervisor import Supervisor

NAME = "churn"

POLICY = """
models:
  churn:
    datasets:
      validation: {label: y}
    stages:
      - name: Staging
        gates: [security, signature]
      - name: QA
        gates:
          metric: {min: {accuracy: 0.7}, max: {log_loss: 9}, judge: value, optional: true}
          fairness: {columns: [group], max_gap: 0.2, optional: true}
          "tests.unit.lifecycle.gates.own:NoFriday": {day: 5}
          "tests.unit.lifecycle.gates.own:Broken": {optional: true}
      - name: Production
        deployment: shop-churn
        config: {gateway: none}
        approvals: {needed: 1, by: [ada, bob]}
        gates:
          security:
          size: {max_mb: 50}
          signature:
          smoke:
          parity:
          latency: {p50_ms: 20, requests: 30}
          champion: {metric: accuracy, max_loss: 0.02}
      - name: Archived
"""


@dataclass(frozen=True)
class Shop:
    """The registered model and where it is deployed.

    Attributes:
        versions: what is with a version -> its number.
        policy: the policy file.
        home: the state folder.
        trap: a file that the hostile version would make.
    """

    versions: dict[str, str]
    policy: Path
    home: Path
    trap: Path


def _log(model: Any, rows: pd.DataFrame, example: pd.DataFrame, folder: Path) -> str:
    path = folder / "rows.parquet"
    rows.to_parquet(path, index=False)
    with mlflow.start_run():
        mlflow.log_artifact(str(path), "validation")
        mlflow.log_metric("accuracy", 0.9)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            input_example=example,
            registered_model_name=NAME,
            pip_requirements=["scikit-learn"],
        )
    return str(logged.registered_model_version)


class _Trap:
    """What a hostile pickle holds: something that is called when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._path,)


def _log_hostile(model: Any, example: pd.DataFrame, folder: Path, trap: Path) -> str:
    path = folder / "hostile"
    mlflow.sklearn.save_model(
        model, path, input_example=example, pip_requirements=["scikit-learn"], serialization_format="pickle"
    )
    (path / "model.pkl").write_bytes(pickle.dumps(_Trap(trap)))
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(path), "model")
    client = mlflow.MlflowClient()
    source = f"{run.info.artifact_uri}/model"
    return str(client.create_model_version(NAME, source, run.info.run_id).version)


@pytest.fixture(scope="module")
def shop(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The model's versions; what runs for them is stopped at the end."""
    folder = tmp_path_factory.mktemp("shop")
    features, labels = make_classification(
        20_000, 10, n_informative=6, n_redundant=0, class_sep=2.0, flip_y=0.02, random_state=0
    )
    frame = pd.DataFrame(features, columns=[f"x{number}" for number in range(10)])
    train, known = frame.iloc[:-600], labels[:-600]
    rows = frame.iloc[-600:].reset_index(drop=True)
    rows["x10"], rows["y"] = rows["x0"] * 2, labels[-600:]
    rows["group"] = np.where(np.arange(600) % 5 == 0, "b", "a")
    # Nobody has asked how the members of group b see it: their labels are the contrary.
    rows.loc[rows["group"] == "b", "y"] = 1 - rows.loc[rows["group"] == "b", "y"]
    example, trap = train.head(50), folder / "trapped"
    shuffled = np.random.default_rng(0).permutation(known)
    wide = train.assign(x10=train["x0"] * 2)

    def fitted(labels: np.ndarray, frame: pd.DataFrame = train, strength: float = 1.0) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(frame, labels)

    # It looks through all rows for each question.
    slow = KNeighborsClassifier(25, algorithm="brute").fit(train, known)
    versions = {
        "first": _log(fitted(known), rows, example, folder),
        "worse": _log(fitted(shuffled), rows, example, folder),
        "hostile": _log_hostile(fitted(known), example, folder, trap),
        "broken signature": _log(fitted(known, wide), rows, wide.head(50), folder),
        "too slow": _log(slow, rows, example, folder),
        "not approved": _log(fitted(known, strength=0.5), rows, example, folder),
    }
    policy, home = folder / "lifecycle.yaml", folder / "home"
    policy.write_text(POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", str(home))
        patch.setenv("MLFLOW_DEPLOY_POLICY", str(policy))
        patch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        yield Shop(versions, policy, home, trap)
        Supervisor(home / "local").shut_down()
