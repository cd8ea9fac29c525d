"""`mlflow-deploy formats` and `convert` on a registered model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import mlflow.xgboost
import pytest
from click.testing import CliRunner, Result

from mlflow_deploy.bundle import read_bundle
from mlflow_deploy.cli import group
from tests.integration.conversion.boosting_cases import gusts, xgb

KEYS = ["format", "ok", "reason", "max_abs_diff", "label_agreement", "latency_us", "latency_us_64", "bytes"]


@pytest.fixture(scope="module")
def logged(tracking: str) -> Any:
    """A registered model with a run."""
    inputs, answers = gusts()
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*integer column.*")
        return mlflow.xgboost.log_model(
            xgb(n_estimators=5).fit(inputs, answers),
            name="model",
            input_example=inputs[:20],
            registered_model_name="gusts",
            pip_requirements=["xgboost-cpu"],
        )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("logged")
def test_formats_lists_every_form_as_json_and_as_a_table() -> None:
    rows = {row["format"]: row for row in json.loads(run("formats", "models:/gusts/1", "--json").stdout)}

    assert all(list(row) == KEYS for row in rows.values())
    assert rows["onnx"]["ok"]
    assert 0 < rows["onnx"]["latency_us"] < rows["pyfunc"]["latency_us"]
    assert rows["onnx"]["bytes"] > 0
    assert rows["savedmodel"] == dict.fromkeys(KEYS) | {
        "format": "savedmodel",
        "ok": False,
        "reason": "there is no conversion from mlflow.xgboost to savedmodel",
    }


def test_convert_writes_a_bundle_and_logs_a_model_that_holds_both(logged: Any, tmp_path: Path) -> None:
    done = run("convert", "models:/gusts/1", "--to", "onnx", "-o", str(tmp_path), "--log", "--json")
    document = json.loads(done.stdout)

    assert document["format"] == "onnx"
    assert document["parity"]["passed"]
    assert document["latency_us"]["onnx"] < document["latency_us"]["pyfunc"]
    bundle = read_bundle(Path(document["bundle"]))
    assert bundle.manifest.servable.kind == "onnx"
    assert "Worst rows" in (tmp_path / "parity.html").read_text()
    assert document["notes"] == []
    artifacts = mlflow.artifacts.list_artifacts(run_id=logged.run_id, artifact_path="parity/onnx")
    assert {Path(item.path).name for item in artifacts} == {"parity.json", "parity.html"}
    both = mlflow.models.Model.load(document["logged"])
    assert {"xgboost", "mlflow_deploy.onnx"} <= set(both.flavors)
    new = mlflow.MlflowClient().get_logged_model(document["logged"].removeprefix("models:/"))
    assert new.tags["mlflow_deploy.parent"] == "models:/gusts/1"


@pytest.mark.usefixtures("logged")
def test_convert_shows_what_it_gained() -> None:
    output = run("convert", "models:/gusts/1", "--to", "auto").stdout
    assert "native" in output
    assert "onnx fp32" in output
    assert "equal on" in output


def test_a_report_that_cannot_be_logged_is_said() -> None:
    from mlflow_deploy.bundle import ModelSource
    from mlflow_deploy.conversion.report import ParityReport, Tolerance
    from mlflow_deploy.lifecycle.evidence import log_report

    report = ParityReport("onnx", "float32", Tolerance(), True, ())
    assert "belongs to no run" in log_report(report, ModelSource(uri="file:///m"))
    assert "not logged to MLflow: " in log_report(report, ModelSource(uri="models:/m/1", run_id="0" * 32))
