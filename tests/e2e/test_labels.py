"""Labels that come later, from the command line, and the reference profile that a deployment freezes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from mlflow.deployments import get_deploy_client
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mlflow_deploy.monitoring import ReferenceProfile
from mlflow_deploy.monitoring.captured import CaptureStore
from tests.waiting import eventually

TOOL = Path(sys.executable).parent / "mlflow-deploy"
CONFIG = {"gateway": "none", "monitor.window": "1d", "capture.flush_seconds": "0.05"}


@pytest.fixture(scope="module")
def flowers(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Registered model `flowers`, whose run has its validation rows with the label `species`."""
    data = load_iris(as_frame=True).frame.rename(columns={"target": "species"})
    train, valid = data.iloc[::2], data.iloc[1::2]
    model = LogisticRegression(max_iter=1000).fit(train.drop(columns="species"), train["species"])
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            input_example=train.drop(columns="species").head(3),
            registered_model_name="flowers",
            pip_requirements=["scikit-learn"],
        )
        rows = tmp_path_factory.mktemp("validation") / "rows.parquet"
        valid.to_parquet(rows)
        mlflow.log_artifact(str(rows), "validation")
    return "flowers"


@pytest.fixture
def deployed(home: Path, flowers: str) -> Iterator[dict[str, Any]]:
    client = get_deploy_client("local")
    yield client.create_deployment("flowers", f"models:/{flowers}/1", config=CONFIG)
    client.delete_deployment("flowers")


def add(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, "labels", "add", "flowers", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_labels_find_their_predictions(deployed: dict[str, Any], home: Path, tmp_path: Path) -> None:
    record = json.loads((home / "local/deployments/flowers/deployment.json").read_bytes())
    bundle = home / "bundles" / record["revisions"][0]["bundle"]
    profile = ReferenceProfile.from_json((bundle / "profile.json").read_text())
    assert profile.rows == 75
    assert [column.name for column in profile.columns] == list(load_iris(as_frame=True).data.columns)
    assert profile.predictions is not None
    assert profile.quality is not None
    accuracy = next(metric for metric in profile.quality.metrics if metric.name == "accuracy")
    assert accuracy.value is not None
    assert accuracy.value > 0.9

    store = CaptureStore(home / "local/deployments/flowers/data")
    rows = load_iris(as_frame=True).data.sample(20, random_state=1)
    for number, (_, row) in enumerate(rows.iterrows()):
        body = {"dataframe_split": {"columns": list(row.index), "data": [row.tolist()]}}
        headers = {"x-request-id": f"flower-{number}"}
        answer = requests.post(f"{deployed['url']}/invocations", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
    eventually(lambda: store.span(1) is not None, 10, "rows are captured")

    table = pd.DataFrame({"request_id": [f"flower-{at}" for at in range(12)], "label": [1] * 12})
    table.to_csv(tmp_path / "labels.csv", index=False)
    told = json.loads(_done(add(str(tmp_path / "labels.csv"), "--json")))
    assert told["added"] == 12
    assert (told["report"]["matched"], told["report"]["coverage"]) == (12, 12 / 20)
    more = pd.DataFrame({"id": ["flower-0", "flower-1", "nobody", None], "truth": [1, 2, 0, 1]})
    more.to_parquet(tmp_path / "more.parquet")
    printed = _done(add(str(tmp_path / "more.parquet"), "--key", "id", "--label", "truth"))
    assert "Added 4 labels to flowers" in printed
    for line in (
        "1 replaced by a later one",
        "1 the same again",
        "1 not used: no captured",
        "1 without a key",
    ):
        assert line in printed
    refused = add(str(tmp_path / "more.parquet"))
    assert refused.returncode != 0
    assert "has no column" in refused.stderr


def _done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout
