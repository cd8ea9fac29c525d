"""The controller: what people move in the registry is deployed, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LinearRegression

from mlflow_deploy.cli import group
from mlflow_deploy.errors import DeploymentBusy
from mlflow_deploy.files import locked
from mlflow_deploy.lifecycle.controller.lease import Lease
from mlflow_deploy.lifecycle.controller.leaving import drain_gone
from mlflow_deploy.lifecycle.controller.loop import follow
from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
from mlflow_deploy.lifecycle.controller.reconcile import Event
from mlflow_deploy.lifecycle.controller.state import Memory
from mlflow_deploy.lifecycle.hints import Hint, give
from mlflow_deploy.lifecycle.promote import promote, promoting
from mlflow_deploy.lifecycle.quarantine import lift, quarantine
from mlflow_deploy.lifecycle.records.chain import read_head
from mlflow_deploy.lifecycle.records.moves_of_model import moves_of
from mlflow_deploy.lifecycle.records.outbox import SECONDS_VARIABLE, read_outbox
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.supervisor import Supervisor
from tests.e2e.load import failed, load
from tests.waiting import eventually

pytestmark = pytest.mark.slow

NAME = "followed"
POLICY = """
models:
  followed:
    stages:
      - name: Production
        deployment: "{model}"
        config: {gateway: envoy, format: onnx}
        gates: [security, signature]
      - name: Archived
"""
KILLS = int(os.environ.get("MLFLOW_DEPLOY_TEST_KILLS", "4"))
"""Twenty take two minutes."""
ROW = {"dataframe_split": {"columns": ["x"], "data": [[10.0]]}}


@pytest.fixture(scope="module")
def followed(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Version 1 answers x, version 2 answers 2 x, version 3 wants another input; the state folder."""
    folder = tmp_path_factory.mktemp("followed")
    for number, column in ((1, "x"), (2, "x"), (3, "z")):
        rows = pd.DataFrame({column: np.arange(8.0)})
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                LinearRegression().fit(rows, rows[column] * number),
                name="model",
                input_example=rows,
                registered_model_name=NAME,
                pip_requirements=["scikit-learn"],
            )
    (folder / "lifecycle.yaml").write_text(POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_DEPLOY_POLICY", str(folder / "lifecycle.yaml"))
        yield folder / "home"
        Supervisor(folder / "home" / "local").shut_down()


def look(*models: str) -> list[Event]:
    """What one look at the registry leads to."""
    events: list[Event] = []
    follow(
        policy=None, models=models, every=False, interval=1, once=True, stop=threading.Event(),
        tell=events.append, progress=lambda line: None,
    )  # fmt: skip
    return events


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(each.action, each.version) for each in events]


def served() -> str:
    record = open_target("local").read_record(NAME)
    return record.stable.model_version if record else ""


def to_stage(version: str, stage: str, *, archive: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        mlflow.MlflowClient().transition_model_version_stage(NAME, version, stage, archive)


def stage_of(version: str) -> str:
    return str(mlflow.MlflowClient().get_model_version(NAME, version).current_stage)


def aliases() -> dict[str, int]:
    return dict(mlflow.MlflowClient().get_registered_model(NAME).aliases)


def test_what_people_move_is_deployed(followed: Path) -> None:
    client = mlflow.MlflowClient()
    assert look() == []
    to_stage("1", "Production")
    assert told(look()) == [("promoted", "1")]
    assert (served(), aliases()) == ("1", {"champion": 1})
    assert look() == []

    client.set_registered_model_alias(NAME, "champion", "2")
    assert told(look()) == [("promoted", "2")]
    assert (served(), stage_of("2"), stage_of("1")) == ("2", "Production", "Archived")
    assert "deployed as revision 2 of followed" in client.get_model_version(NAME, "2").description
    assert look() == []

    client.set_registered_model_alias(NAME, "champion", "3")
    (refused,) = look()
    assert (refused.action, refused.version) == ("refused", "3")
    assert "input 'z' is new and required" in refused.reason
    assert "refused, nothing was deployed" in client.get_model_version(NAME, "3").description
    assert served() == "2"
    assert look() == [], "a refused version is not tried again and again"
    client.set_model_version_tag(NAME, "3", "deploy.approval.Production", "ada")
    assert told(look()) == [("refused", "3")], "something has changed, so it is tried again"

    to_stage("1", "Production", archive=True)
    assert told(look()) == [("promoted", "1")], "a rollback by the stage"
    assert (served(), aliases()) == ("1", {"champion": 1})

    to_stage("1", "Archived")
    assert told(look()) == [("drained", "1")]
    assert served() == ""
    assert look() == []


def test_of_two_controllers_one_acts(followed: Path) -> None:
    to_stage("1", "Production", archive=True)
    events: list[Event] = []
    stop = threading.Event()

    def run() -> None:
        follow(
            policy=None, models=(), every=False, interval=0.2, once=False, stop=stop,
            tell=events.append, progress=lambda line: None,
        )  # fmt: skip

    thread = threading.Thread(target=run)
    with locked(followed / "controller.lock", wait=False, owner="other"):
        thread.start()
        eventually(lambda: bool(events))
        assert [(each.action, each.reason) for each in events] == [("waiting", "the other acts")]
        assert served() == ""
    eventually(lambda: len(events) > 1)
    stop.set()
    thread.join()
    assert told(events)[1:] == [("promoted", "1")]


def test_of_two_state_folders_one_acts(followed: Path, tmp_path: Path) -> None:
    """As on two machines: they see nothing of each other but a tag in MLflow."""
    before = served()
    other, events, stop = Lease(_folder(tmp_path / "other"), "places"), list[Event](), threading.Event()
    assert other.take() == ""
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "2")

    def run() -> None:
        follow(
            policy=None, models=(), every=False, interval=0.2, once=False, stop=stop, lease="places",
            tell=events.append, progress=lambda line: None,
        )  # fmt: skip

    thread = threading.Thread(target=run)
    with other.renewed(give_back=True):
        thread.start()
        eventually(lambda: bool(events))
        assert events[0].action == "waiting"
        assert "controller of process" in events[0].reason
        assert served() == before
        first = other.token
    eventually(lambda: len(events) > 1)
    assert told(events)[1:] == [("promoted", "2")]
    assert "acts" not in other.take()
    assert not other.holds()
    stop.set()
    thread.join()
    assert other.take() == "", "it was given back"
    assert other.token > first + 1, "each holder has a larger token than those before"


def test_the_lease_of_a_dead_controller_is_taken(followed: Path, tmp_path: Path) -> None:
    dead = Lease(_folder(tmp_path / "dead"), "brief", seconds=4, settle=0.1)
    heir = Lease(_folder(tmp_path / "heir"), "brief", seconds=4, settle=0.1)
    assert dead.take() == ""
    assert dead.holds()
    assert heir.take()
    time.sleep(4.5)
    assert heir.take() == ""
    assert not dead.holds(), "what it was about to begin, it does not"
    assert dead.take()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_quarantine_ends_the_rollout_that_runs(
    followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look()
    client, before, target = mlflow.MlflowClient(), served(), open_target("local")
    bad = "2" if before == "1" else "1"
    slow = 'strategy: canary\n        config: {canary_steps: "50", step_seconds: 60, '
    (tmp_path / "lifecycle.yaml").write_text(POLICY.replace("config: {", slow))
    monkeypatch.setenv("MLFLOW_DEPLOY_POLICY", str(tmp_path / "lifecycle.yaml"))
    client.set_registered_model_alias(NAME, "champion", bad)
    events: list[Event] = []
    thread = threading.Thread(target=lambda: events.extend(look()))
    with load(target.url(target.require(NAME)), ROW, rate=40, clients=2) as seen:
        thread.start()
        eventually(lambda: len(target.require(NAME).weights) == 2)
        report = quarantine([target], NAME, bad, "wrong units", progress=lambda line: None)
        thread.join()
    assert not failed(seen)
    (affected,) = report.affected
    assert report.ok, report
    assert told(events) == [("failed", bad)]
    record = target.require(NAME)
    assert (record.stable.model_version, record.weights) == (before, {record.stable.number: 100})
    assert affected.revision == record.stable.number
    client.set_registered_model_alias(NAME, "champion", before)
    assert lift([target], NAME, bad) == [NAME]
    look()


def test_the_command_takes_its_options(followed: Path) -> None:
    look()
    policy = os.environ["MLFLOW_DEPLOY_POLICY"]
    options = ["--once", "--json", "--all", "--model", NAME, "--policy", policy, "--interval", "0.2"]
    done = CliRunner().invoke(group, ["controller", *options, "--webhook-port", "0", "--lease", "command"])
    assert done.exit_code == 0, done.output
    (line,) = [json.loads(each) for each in done.stdout.splitlines()]
    assert (line["action"], line["reason"].split(":")[0]) == ("listening", "metrics only")
    bad = CliRunner().invoke(group, ["controller", "--interval", "0.1"])
    assert (bad.exit_code, "0.2" in bad.output) == (2, True)
    missing = CliRunner().invoke(group, ["controller", "--once", "--policy", "/nowhere.yaml"])
    assert missing.exit_code == 1
    assert "cannot be read" in missing.output
    told_of = CliRunner().invoke(group, ["controller", "--help"]).output
    for option in (
        "--model",
        "--all",
        "--policy",
        "--interval",
        "--once",
        "--webhook-port",
        "--lease",
        "--json",
    ):
        assert option in told_of


def test_killed_at_any_moment_it_goes_on(followed: Path) -> None:
    """Versions 1 and 2 take turns; each time the controller is killed on the way and started again."""
    look()
    target = open_target("local")
    url = target.url(target.require(NAME))
    # Fixed, so that a failure can be seen again; where a kill meets the rollout differs all the same.
    moments = random.Random(7)
    command = [str(Path(sys.executable).parent / "mlflow-deploy"), "controller", "--interval", "0.5"]
    met = 0
    answers: list[Any] = []
    with load(url, ROW, rate=40, clients=2, answers=answers) as seen:
        for _ in range(KILLS):
            wanted = "2" if served() == "1" else "1"
            mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", wanted)
            with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE) as process:
                time.sleep(2.0 + moments.uniform(0.0, 6.0))
                met += served() != wanted or stage_of(wanted) != "Production"
                process.kill()
            eventually(lambda wanted=wanted: not told(look()) and settled(wanted))  # type: ignore[misc]
    assert met, "no kill came before the end of a rollout"
    assert not failed(seen)
    assert {round(float(np.ravel(each)[0]), 3) for each in answers} == {10.0, 20.0}
    assert len(answers) > 200


def settled(version: str) -> bool:
    """Whether everything says the same."""
    found = (served(), stage_of(version), aliases())
    return found == (version, "Production", {"champion": int(version)})


def test_what_is_in_quarantine_stays_out(followed: Path) -> None:
    look()
    client, before = mlflow.MlflowClient(), served()
    other = "2" if before == "1" else "1"
    client.set_model_version_tag(NAME, other, "deploy.quarantine", "wrong units")
    client.set_registered_model_alias(NAME, "champion", other)
    (event,) = look()
    assert (event.action, event.version, served()) == ("refused", other, before)
    assert "in quarantine" in event.reason
    assert look() == []
    client.delete_model_version_tag(NAME, other, "deploy.quarantine")
    assert told(look()) == [("promoted", other)]


def test_what_is_refused_is_put_back_where_the_policy_says_so(
    followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, before = mlflow.MlflowClient(), "1"
    client.set_registered_model_alias(NAME, "champion", before)
    look()
    assert served() == before
    (tmp_path / "lifecycle.yaml").write_text(POLICY.replace("gates:", "put_back: true\n        gates:"))
    monkeypatch.setenv("MLFLOW_DEPLOY_POLICY", str(tmp_path / "lifecycle.yaml"))
    to_stage("3", "Staging")
    give(Hint(model=NAME, kind="stage", what="3", after="Staging", by="bob"))
    assert look() == []
    to_stage("3", "Production", archive=True)
    assert stage_of(before) == "Archived"
    give(Hint(model=NAME, kind="stage", what="3", after="Production", archives=True, by="ada"))
    (event,) = look()
    assert (event.action, event.version) == ("refused", "3")
    assert (stage_of("3"), served()) == ("Staging", before)
    assert settled(before)
    assert look() == []
    assert "By ada at" in client.get_model_version(NAME, "3").description
    found = {(each.what, each.before, each.after, each.by) for each in moves_of(NAME) if each.kind == "stage"}
    assert {("3", "Staging", "Production", "ada"), (before, "Production", "Archived", "ada")} <= found
    (back,) = [each for each in moves_of(NAME) if (each.what, each.after) == ("3", "Staging") and each.reason]
    assert back.reason.startswith("put back, it was refused: ")
    client.set_registered_model_alias(NAME, "champion", "3")
    assert told(look()) == [("refused", "3")]
    assert settled(before), "the alias goes back too"


def test_releases_that_mlflow_missed_are_logged(followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look()
    target = open_target("local")
    waiting = read_head(target, NAME).number - len(read_outbox(target, NAME).runs)
    assert waiting > 0
    monkeypatch.setenv(SECONDS_VARIABLE, "60")
    assert look() == []
    assert len(read_outbox(target, NAME).runs) == read_head(target, NAME).number


def test_a_promotion_by_hand_is_not_disturbed(followed: Path) -> None:
    look()
    before = served()
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "2" if before == "1" else "1")
    with promoting(NAME):
        assert look() == []
        with pytest.raises(DeploymentBusy, match="a promotion of followed"):
            promote(NAME, before, "Production", progress=lambda line: None)
    assert served() == before
    assert told(look()) == [("promoted", "2" if before == "1" else "1")]


def test_without_registry_everything_serves_on(followed: Path, tracking: str) -> None:
    look()
    before = served()
    mlflow.set_registry_uri("http://127.0.0.1:9")
    try:
        (event,) = look()
    finally:
        mlflow.set_registry_uri(tracking)
    assert (event.action, served()) == ("error", before)
    assert "does not answer" in event.reason
    assert look() == []


def test_metrics_say_that_the_registry_is_down(followed: Path, tracking: str) -> None:
    metrics = ControllerMetrics()
    texts = []
    for uri in ("http://127.0.0.1:9", tracking):
        mlflow.set_registry_uri(uri)
        follow(
            policy=None, models=(), every=False, interval=1, once=True, stop=threading.Event(),
            tell=lambda event: None, progress=lambda line: None, metrics=metrics,
        )  # fmt: skip
        texts.append(metrics.text().decode().splitlines())
    down, up = texts
    assert "mlflow_deploy_controller_registry_up 0.0" in down
    assert "mlflow_deploy_controller_last_good_look_timestamp_seconds 0.0" in down
    assert 'mlflow_deploy_controller_events_total{action="error"} 1.0' in down
    assert {"mlflow_deploy_controller_registry_up 1.0", "mlflow_deploy_controller_deployments 1.0"} <= set(up)


def test_a_look_at_many_models_is_short(followed: Path, tracking: str) -> None:
    """1,000 models with 10 versions each, all followed, and nothing to do."""
    look()
    with contextlib.closing(sqlite3.connect(tracking.removeprefix("sqlite:///"))) as store:
        names = [f"many-{number:04}" for number in range(1000)]
        store.executemany(
            "INSERT INTO registered_models (name, creation_time) VALUES (?, 1)", [(n,) for n in names]
        )
        store.executemany(
            "INSERT INTO model_versions (name, version, creation_time, current_stage, source) "
            "VALUES (?, ?, 1, 'None', 'file:///nowhere')",
            [(name, version) for name in names for version in range(1, 11)],
        )
        store.commit()
        try:
            begun = time.monotonic()
            events = look(*names)
            taken = time.monotonic() - begun
        finally:
            store.execute("DELETE FROM model_versions WHERE name LIKE 'many-%'")
            store.execute("DELETE FROM registered_models WHERE name LIKE 'many-%'")
            store.commit()
    assert events == []
    assert taken < 5


def test_a_model_that_is_deleted_as_a_whole_is_drained(followed: Path, tracking: str, tmp_path: Path) -> None:
    look()
    client, before = mlflow.MlflowClient(), served()
    assert before
    shutil.copy(tracking.removeprefix("sqlite:///"), tmp_path / "other.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as store:
        store.execute("DELETE FROM registered_models WHERE name = ?", (NAME,))
        store.commit()
    mlflow.set_registry_uri(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        (event,) = look()
    finally:
        mlflow.set_registry_uri(tracking)
    assert (event.action, served()) == ("error", before)
    assert "promoted from another one" in event.reason
    ((*_, why),) = drain_gone((), Memory(followed / "controller.json"))
    assert (why, served()) == ("the registry has no model at all; deployments serve on", before)

    for version in ("1", "2", "3"):
        to_stage(version, "None")
    client.delete_registered_model(NAME)
    client.create_registered_model("another")
    (event,) = look()
    assert (event.action, event.version, served()) == ("drained", before, "")
    assert look() == []
