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
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client

from mlflow_deploy.cli import group
from tests.e2e.conftest import answers, servers_of
from tests.waiting import eventually

BIN = Path(sys.executable).parent


def typed(*arguments: str) -> str:
    """Run a command in a process of its own, as a user does, and return what it printed."""
    done = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], capture_output=True, text=True, env=os.environ, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(*arguments: str, code: int = 0) -> str:
    """Run a command in this process, which need not load MLflow again; checks its exit status."""
    from mlflow.cli import cli

    done = CliRunner().invoke(cli if arguments[0] == "mlflow" else group, arguments[1:])
    assert done.exit_code == code, done.output
    # Whatever else leaves a command is a stack trace in a terminal.
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output, done.output
    return done.output


def error_line(*arguments: str, code: int = 1) -> str:
    """Run a command that must fail and return its one error line."""
    printed = run(*arguments, code=code)
    lines = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, printed
    return lines[0]


def local_status() -> list[dict[str, Any]]:
    """What `status` tells of this test's state folder; the container engine is shared with other tests."""
    done = CliRunner().invoke(group, ["status", "--json"])
    assert done.exit_code in (0, 3), done.output
    return [row for row in json.loads(done.stdout) if row["target"] == "local"]


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

    printed = typed("mlflow", "deployments", "create", *local, "-m", "models:/flight-delay/1")
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
    assert [(row["name"], row["revision"], row["format"]) for row in local_status()] == [("d1", 2, "pyfunc")]
    assert "ready" in typed("mlflow-deploy", "logs", "d1", "-n", "50")
    assert "is deleted" in run("mlflow", "deployments", "delete", *local)
    assert "is deleted" in run("mlflow", "deployments", "delete", *local)
    assert local_status() == []
    assert "MODEL_URI" in run("mlflow", "deployments", "help", "-t", "local")


def tool(*arguments: str) -> str:
    """Run `mlflow-deploy` in this process, which is faster, and return what it printed."""
    done = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_plan_update_history_and_delete_of_a_revision(home: Path, iris_models: str) -> None:
    client = get_deploy_client("local")
    client.create_deployment("d1", "models:/iris/1")
    config = ("-C", "strategy=canary", "-C", "canary_steps=20", "-C", "step_seconds=0.5")
    plan = json.loads(tool("plan", "d1", "-m", "models:/iris/2", *config, "--json"))
    changes = {change["key"]: (change["old"], change["new"]) for change in plan["changes"]}
    assert changes["model_version"] == ("1", "2")
    assert [step["share"] for step in plan["steps"]] == [20, 100]
    assert plan["changed"]
    assert client.get_deployment("d1")["revision"] == 1
    shown = tool("plan", "d1", "-m", "models:/iris/2", *config)
    assert "revision 1 -> 2 by strategy canary" in shown
    assert "drain and stop revision 1" in shown
    run("mlflow", "deployments", "update", "-t", "local", "--name", "d1", "-m", "models:/iris/2", *config)
    assert client.get_deployment("d1")["bundle"] == changes["bundle"][1]
    assert not json.loads(tool("plan", "d1", "--json", *config))["changed"]
    assert "already serves exactly this" in tool("plan", "d1", *config)

    history = json.loads(tool("history", "d1", "--json"))
    assert [(each["action"], each["outcome"]) for each in history] == [
        ("create", "done"),
        ("update", "started"),
        ("update", "done"),
    ]
    assert history[-1]["reason"]
    assert (history[-1]["before"], history[-1]["after"]) == ({"1": 100}, {"2": 100})
    assert "WHO" in tool("history", "d1")
    refused = error_line("mlflow", "deployments", "delete", "-t", "local", "--name", "d1", "-C", "revision=2")
    assert "it gets 100 % of the requests" in refused
    run("mlflow", "deployments", "delete", "-t", "local", "--name", "d1", "-C", "revision=1")
    assert [row["revision"] for row in client.get_deployment("d1")["revisions"]] == [2]
    assert not list((home / "local" / "deployments" / "d1").rglob("r1-*"))
    assert json.loads(tool("prune", "--json")) == {"removed": False, "orphans": [], "skipped": []}
    assert "Nothing to remove" in tool("prune")
    pruned = json.loads(tool("prune", "--bundles", "--older-than", "0", "--yes", "--json"))
    assert [orphan["kind"] for orphan in pruned["orphans"]] == ["bundle"]
    assert [path.name for path in (home / "bundles").iterdir()] == [changes["bundle"][1]]


@pytest.mark.slow
def test_failed_update_leaves_the_word_rolled_back(home: Path, iris_models: str, iris_rows: Any) -> None:
    client = get_deploy_client("local")
    client.create_deployment("d1", "models:/iris/1")
    url, running = client.get_deployment("d1")["url"], len(servers_of(home))
    failures = {
        "ready_seconds=0.01": "it was not ready within 0.01 s",
        # The candidate is ready, and the gateway refuses the move.
        "serving.tls_cert=/no/such.pem": "The gateway refuses the new listener",
    }
    for setting, message in failures.items():
        key = ("-C", "serving.tls_key=/no/such.pem") if "tls" in setting else ()
        arguments = ("-m", "models:/iris/2", "-C", setting, *key)
        line = error_line("mlflow", "deployments", "update", "-t", "local", "--name", "d1", *arguments)
        assert message in line
        status = " ".join(tool("status", "d1").split())
        assert "rolled_back: the update to revision 2 (models:/iris/2)" in status
        assert message in status
        described = client.get_deployment("d1")
        assert (described["status"], described["last_update"]) == ("ready", "rolled_back")
        assert described["traffic"] == {"1": 100}
        assert described["url"] == url
        assert client.predict("d1", iris_rows.head(2)).get_predictions().shape == (2, 1), setting
        assert len(servers_of(home)) == running
    client.update_deployment("d1", "models:/iris/2")
    assert client.get_deployment("d1")["detail"] == ""


@pytest.mark.slow
def test_another_terminal_pauses_resumes_and_aborts(home: Path, iris_models: str) -> None:
    client = get_deploy_client("local")
    client.create_deployment("d1", "models:/iris/1")
    command = [str(BIN / "mlflow"), "deployments", "update", "-t", "local", "--name", "d1"]
    command += ["-m", "models:/iris/2", "-C", "strategy=canary", "-C", "step_seconds=300"]
    update = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: client.get_deployment("d1")["traffic"].get("2") == 10, 90, "the canary has 10 %")
        assert client.get_deployment("d1")["last_update"] == "started"
        for number in (1, 2):
            delete = ("-t", "local", "--name", "d1", "-C", f"revision={number}")
            refused = error_line("mlflow", "deployments", "delete", *delete)
            assert "a rollout from revision 1 to 2 goes on" in refused
        for word in ("pause", "resume", "abort"):
            tool("rollout", "d1", word)
    finally:
        _, printed = update.communicate(timeout=120)
    assert update.returncode == 1
    assert [line for line in printed.splitlines() if line.startswith("Error:")] == [
        "Error: The rollout of revision 2 of deployment 'd1' was rolled back: a person aborted it. Revision 1 "
        "has all requests again; see `mlflow-deploy logs d1 -r 2`."
    ]
    assert "a person aborted it" in client.get_deployment("d1")["detail"]
    assert client.get_deployment("d1")["last_update"] == "rolled_back"
    assert client.get_deployment("d1")["traffic"] == {"1": 100}


@pytest.mark.slow
def test_status_watches_what_another_terminal_changes(home: Path, iris_models: str) -> None:
    client = get_deploy_client("local")
    client.create_deployment("d1", "models:/iris/1")
    watch = subprocess.Popen(
        [str(BIN / "mlflow-deploy"), "status", "d1", "--watch", "--json", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())[0]["revision"] == 1
    client.update_deployment("d1", "models:/iris/2")
    seen = [json.loads(watch.stdout.readline())[0]]
    while seen[-1]["revision"] != 2 or seen[-1]["last_update"] != "done":
        seen.append(json.loads(watch.stdout.readline())[0])
    assert "started" in [row["last_update"] for row in seen]
    watch.send_signal(signal.SIGINT)
    _, printed = watch.communicate(timeout=120)
    assert (watch.returncode, printed) == (0, "")


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
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert f"Serving models:/iris/1 as onnx on {url}" in printed
    assert not answers(url, iris_rows.head(2))
