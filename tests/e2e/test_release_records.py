"""Release records and quarantine on real deployments of this machine and a real tracking store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import Quarantined
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.quarantine_marks import TAG
from mlflow_deploy.lifecycle.records.mlflow_copy import HASH_TAG, experiment_name
from mlflow_deploy.lifecycle.records.outbox import SECONDS_VARIABLE
from mlflow_deploy.targets.local import LocalTarget
from tests.e2e.conftest import answers

NAME = "flights-audit"


def quiet(_line: str) -> None:
    """Show no progress."""


def tool(*words: str, status: int = 0, **environment: str) -> str:
    """Run `mlflow-deploy` and give what it printed."""
    done = subprocess.run(
        [Path(sys.executable).parent / "mlflow-deploy", *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def client(home: Path, iris_models: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of target local, with records that go to MLflow; what a test logged is gone after it."""
    monkeypatch.setenv(SECONDS_VARIABLE, "60")
    yield get_deploy_client("local")
    experiment = mlflow.get_experiment_by_name(experiment_name("local", NAME))
    if experiment:
        registry = mlflow.MlflowClient()
        registry.rename_experiment(experiment.experiment_id, f"gone {time.time_ns()}")
        registry.delete_experiment(experiment.experiment_id)


def runs() -> list[Any]:
    """The runs of the deployment's experiment, the oldest first."""
    experiment = mlflow.get_experiment_by_name(experiment_name("local", NAME))
    found = mlflow.MlflowClient().search_runs([experiment.experiment_id]) if experiment else []
    return sorted(found, key=lambda run: int(run.data.tags["mlflow_deploy.record"]))


@pytest.mark.slow
def test_a_rollout_leaves_a_run_and_a_file_and_what_was_falsified_is_named(client: Any, home: Path) -> None:
    client.create_deployment(NAME, "models:/iris/1")
    row = client.update_deployment(NAME, "models:/iris/2")
    assert row["release"]["mlflow"] == "logged"
    created, updated = runs()
    assert updated.data.tags[HASH_TAG] == row["release"]["hash"]
    assert (updated.info.status, updated.data.params["model"]) == ("FINISHED", "models:/iris/2")
    assert updated.data.metrics == {"share of revision 2": 100.0}
    shown = json.loads(tool("release", "show", NAME, "2", "--json"))
    assert shown["model"]["version"] == "2"
    assert shown["parity"]["format"] == "onnx"
    folder = home / "local" / "archive" / NAME
    assert json.loads((folder / "release-00000002.json").read_text()) == shown
    assert "revision 2: 100 %" in tool("release", "show", NAME, "--at", "now")
    assert "before the first release" in tool(
        "release", "show", NAME, "--at", "2020-01-01 12:00 Europe/Berlin"
    )
    found = json.loads(tool("audit", "verify", NAME, "--json"))["audits"][0]
    assert (found["ok"], found["records"], found["bundles"], found["copies"]) == (True, 2, 2, 2)

    # The whole chain is made again by somebody with all rights on the files; MLflow's copies tell.
    from mlflow_deploy.lifecycle.records.record import digest_of, encode

    first = {**json.loads((folder / "release-00000001.json").read_text()), "requester": "eve"}
    first["hash"] = digest_of(first)
    second = {**shown, "previous": first["hash"]}
    second["hash"] = digest_of(second)
    (folder / "release-00000001.json").write_bytes(encode(first))
    (folder / "release-00000002.json").write_bytes(encode(second))
    head = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**head, "hash": second["hash"]}))
    assert "whole" in tool("audit", "verify", NAME, "--no-mlflow")
    told = tool("audit", "verify", NAME, status=1)
    assert f"record 1 copy: its copy in MLflow, run {created.info.run_id}, differs: hash, requester" in told
    assert "record 2 copy" in told

    # A file of a bundle is changed.
    bundle = home / "bundles" / shown["bundle"]
    (bundle / "example.json").write_text("{}")
    assert "record 2 bundle" in tool("audit", "verify", NAME, "--no-mlflow", status=1)


@pytest.mark.slow
def test_history_outlives_the_deployment_and_that_of_a_model_tells_stages_and_aliases(
    client: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    client.create_deployment(NAME, "models:/iris/1")
    client.delete_deployment(NAME)
    rows = json.loads(tool("history", NAME, "--json"))
    assert [(row["action"], row["outcome"], row["record"]) for row in rows] == [
        ("create", "done", 1),
        ("delete", "done", 2),
    ]
    assert "nothing served" in tool("release", "show", NAME, "--at", "now")
    from mlflow_deploy.lifecycle.history import model_history
    from mlflow_deploy.lifecycle.records.moves_of_model import moving

    registry = mlflow.MlflowClient()
    known, _ = model_history([LocalTarget()], "iris")
    assert [(each["kind"], each["what"]) for each in known if each["where"] != "registry"] == [
        ("create", "1"),
        ("delete", "1"),
    ]
    with moving("iris", by="grace", reason="it is better"):
        registry.set_registered_model_alias("iris", "moved", 1)
    registry.set_registered_model_alias("iris", "moved", 2)
    with pytest.warns(FutureWarning, match="stages"):
        registry.transition_model_version_stage("iris", "2", "Staging")
    try:
        events = json.loads(tool("history", "iris", "--json"))
        new = [each for each in events if each["where"] == "registry"]
        told = [(each["kind"], each["what"], each["before"], each["after"], each["by"]) for each in new]
        assert ("alias", "moved", "", "1", "grace") in told
        assert ("alias", "moved", "1", "2", "") in told
        assert ("stage", "2", "None", "Staging", "") in told
        assert {("version", "1"), ("version", "2")} <= {each[:2] for each in told}
        assert "Staging" in tool("history", "iris", "--model")
    finally:
        registry.delete_registered_model_alias("iris", "moved")
        with pytest.warns(FutureWarning, match="stages"):
            registry.transition_model_version_stage("iris", "2", "None")


_KILLED = """
import os, sys
from mlflow_deploy.lifecycle import release
from mlflow_deploy.lifecycle.records import recorder
from mlflow_deploy.targets.local import LocalTarget
recorder.append = lambda *_: os._exit(9)
{act}
"""


@pytest.mark.slow
def test_a_command_killed_between_acting_and_recording_is_told_by_the_next(
    client: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    client.create_deployment(NAME, "models:/iris/1")
    for act in (
        f"release.update(LocalTarget(), {NAME!r}, 'models:/iris/2', evidence={{'why': 'x'}}, progress=print)",
        f"release.delete(LocalTarget(), {NAME!r})",
    ):
        done = subprocess.run(
            [sys.executable, "-c", _KILLED.format(act=act)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 9, done.stderr
        rows = json.loads(tool("history", NAME, "--json"))
        late = json.loads(tool("release", "show", NAME, "--json"))
        assert "was killed before it was recorded" in late["late"]
    assert [row["action"] for row in rows] == ["create", "update", "delete"]
    assert json.loads(tool("release", "show", NAME, "2", "--json"))["evidence"] == {"why": "x"}
    assert json.loads(tool("audit", "verify", NAME, "--no-mlflow", "--json"))["audits"][0]["ok"]


@pytest.mark.alone
def test_a_dead_server_neither_fails_nor_delays_and_its_copies_come_later(
    client: Any, home: Path, tracking: str
) -> None:
    client.create_deployment(NAME, "models:/iris/1")
    client.update_deployment(NAME, "models:/iris/2")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        begun = time.monotonic()
        row = release.rollback(LocalTarget(), NAME, progress=quiet)
        took = time.monotonic() - begun
    finally:
        mlflow.set_tracking_uri(tracking)
    assert "does not answer" in row["release"]["mlflow"]
    assert took < 15
    assert len(runs()) == 2
    tool("audit", "verify", NAME)
    assert [run.data.tags["mlflow_deploy.action"] for run in runs()] == ["create", "update", "rollback"]


@pytest.mark.slow
def test_quarantine_takes_a_version_out_and_keeps_it_out(
    client: Any, home: Path, iris_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    client.create_deployment(NAME, "models:/iris/1")
    row = client.update_deployment(NAME, "models:/iris/2", config={"keep_revisions": "1"})
    registry = mlflow.MlflowClient()
    try:
        told = json.loads(tool("quarantine", "iris", "2", "--reason", "it leaks", "--json"))
        assert [(each["outcome"], each["revision"]) for each in told["affected"]] == [("moved", 1)]
        assert client.get_deployment(NAME)["traffic"] == {"1": 100}
        assert answers(row["url"], iris_rows.head(2))
        assert registry.get_model_version("iris", "2").tags[TAG] == "it leaks"
        shown = json.loads(tool("release", "show", NAME, "--json"))
        assert (shown["action"], shown["reason"]) == (
            "rollback",
            "model version iris/2 is in quarantine: it leaks",
        )
        target = LocalTarget()
        version = registry.get_model_version("iris", "2")
        assert version.source.startswith("models:/m-")
        for uri in ("models:/iris/2", version.source, f"runs:/{version.run_id}/model"):
            with pytest.raises(Quarantined, match="it leaks"):
                release.update(target, NAME, uri, progress=quiet)
        with pytest.raises(Quarantined):
            client.create_deployment("other", "models:/iris/2")
        with pytest.raises(Quarantined, match="--lift"):
            release.rollback(target, NAME, 2, progress=quiet)
        assert target.status(target.require(NAME), 2).state == "stopped"
        again = json.loads(tool("quarantine", "iris", "2", "--reason", "it leaks", "--json"))
        assert [each["outcome"] for each in again["affected"]] == ["unaffected"]
        stuck = json.loads(tool("quarantine", "iris", "1", "--reason", "too old", "--json", status=3))
        assert [each["outcome"] for each in stuck["affected"]] == ["stuck"]
    finally:
        for version in ("1", "2"):
            tool("quarantine", "iris", version, "--lift")
    release.rollback(target, NAME, 2, progress=quiet)
    assert client.get_deployment(NAME)["traffic"] == {"2": 100}
    assert TAG not in registry.get_model_version("iris", "2").tags
