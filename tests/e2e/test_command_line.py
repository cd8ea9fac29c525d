"""An engineer types `mlflow deployments ...` in a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.e2e.conftest import answers, eventually

BIN = Path(sys.executable).parent


def run(*arguments: str, code: int = 0) -> str:
    """Run a command as a user would, check its exit status, and return what it printed."""
    done = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], capture_output=True, text=True, env=os.environ, timeout=180
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed, printed
    return printed


def error_line(*arguments: str, code: int = 1) -> str:
    """Run a command that must fail and return its one error line."""
    printed = run(*arguments, code=code)
    lines = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, printed
    return lines[0]


@pytest.mark.slow
def test_life_of_a_deployment(home: Path, flight_model: Any, tmp_path: Path) -> None:
    sample = mlflow.models.Model.load(flight_model.model_uri).load_input_example(
        mlflow.artifacts.download_artifacts(flight_model.model_uri)
    )
    rows = json.loads(sample.to_json(orient="split", index=False))
    local = ("-t", "local", "--name", "d1")
    files = {"split": {"dataframe_split": rows}, "records": {"dataframe_records": None}}
    files["records"] = {
        "dataframe_records": [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    }

    printed = run("mlflow", "deployments", "create", *local, "-m", "models:/flight-delay/1")
    assert "onnx deployment d1 is created" in printed
    answers = []
    for name, content in files.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        answers.append(run("mlflow", "deployments", "predict", *local, "-I", str(path)))
    assert answers[0] == answers[1]
    expected = mlflow.pyfunc.load_model(flight_model.model_uri).predict(sample).tolist()
    assert json.loads(answers[0]) == {"predictions": expected}

    printed = run("mlflow", "deployments", "get", *local)
    for line in ("name: d1", "flavor: onnx", "status: ready", "revision: 1", "model_version: 1"):
        assert f"{line}\n" in printed
    assert "'d1'" in run("mlflow", "deployments", "list", "-t", "local")
    taken = error_line("mlflow", "deployments", "create", *local, "-m", "models:/flight-delay/1")
    assert "already exists" in taken
    printed = run("mlflow", "deployments", "update", *local, "-f", "pyfunc")
    assert "with flavor pyfunc" in printed
    status = json.loads(run("mlflow-deploy", "status", "--json"))
    assert [(row["name"], row["revision"], row["format"]) for row in status] == [("d1", 2, "pyfunc")]
    assert "ready" in run("mlflow-deploy", "logs", "d1", "-n", "50")
    assert "is deleted" in run("mlflow", "deployments", "delete", *local)
    assert "is deleted" in run("mlflow", "deployments", "delete", *local)
    assert json.loads(run("mlflow-deploy", "status", "--json")) == []
    assert "MODEL_URI" in run("mlflow", "deployments", "help", "-t", "local")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "--name", "d1", "-m", "models:/nope/1"), 1, "There is no model 'models:/nope/1'"),
        (("create", "--name", "a/b", "-m", "models:/iris/1"), 2, "cannot be a deployment name"),
        (("create", "--name", "d1", "-m", "models:/iris/1", "-C", "prot=1"), 2, "did you mean 'port'"),
        (("get", "--name", "nope"), 1, "There is no deployment 'nope'"),
        (("update", "--name", "nope", "-m", "models:/iris/1"), 1, "There is no deployment 'nope'"),
    ],
)
def test_mistakes_are_one_line(
    home: Path, iris_models: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    line = error_line("mlflow", "deployments", arguments[0], "-t", "local", *arguments[1:], code=code)
    assert message in line


@pytest.mark.slow
def test_run_local_serves_in_the_foreground_until_interrupted(
    home: Path, iris_models: str, iris_rows: Any
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BIN / "mlflow"), "deployments", "run-local", "-t", "local", "--name", "here"]
    process = subprocess.Popen(
        [*command, "-m", "models:/iris/1", "-C", f"port={port}"], stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: answers(url, iris_rows.head(2)), 60, "the foreground server answers")
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 0, printed
    assert f"Serving models:/iris/1 as onnx on {url}" in printed
    assert not answers(url, iris_rows.head(2))
