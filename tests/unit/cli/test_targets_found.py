"""Commands find the target of a deployment by themselves, and say so when one does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy.cli import group
from mlflow_deploy.errors import DeploymentNotFound
from mlflow_deploy.images.errors import EngineNotRunning
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord
from mlflow_deploy.targets.finder import find_target, used_targets
from mlflow_deploy.targets.local import LocalTarget


@pytest.fixture
def no_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no Docker engine answers, with deployment d1 on target local."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    revision = RevisionRecord(
        number=1, bundle="sha256-x", format="onnx", model_uri="m", resolved_uri="m", model_name="",
        model_version="", fallback="", parity="", spec={}, created_at="",
    )  # fmt: skip
    record = DeploymentRecord(
        name="d1", phase="ready", host="127.0.0.1", port=8500, revisions=(revision,), weights={1: 100},
        created_at="", updated_at="",
    )  # fmt: skip
    LocalTarget().write_record(record)


def test_a_machine_without_docker_never_hears_of_it(no_engine: None) -> None:
    assert find_target("d1").name == "local"
    assert find_target("d1", "docker").name == "docker"
    with pytest.raises(DeploymentNotFound, match="did you mean 'd1'"):
        find_target("d2")
    assert [target.name for target in used_targets()] == ["local"]


def test_an_engine_that_was_used_and_is_silent_is_told(no_engine: None, home: Path) -> None:
    (home / "docker").mkdir()
    assert find_target("d1").name == "local"
    with pytest.raises(EngineNotRunning):
        find_target("d2")
    done = CliRunner().invoke(group, ["status", "--json"])
    assert done.exit_code == 3
    assert [row["name"] for row in json.loads(done.stdout)] == ["d1"]
    assert done.stderr.startswith("Target docker does not answer: No Docker engine answers")
    with pytest.raises(EngineNotRunning):
        CliRunner().invoke(group, ["status", "-t", "docker"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "d1", "-C", "a"], "'a' is not KEY=VALUE"),
        (["plan", "d1", "-C", "a=1", "-C", "a=1"], "'a=1' comes twice"),
        (["prune", "--older-than", "-1"], "not in the range"),
        (["plam", "d1"], "did you mean 'plan'"),
    ],
)
def test_wrong_words_are_refused(no_engine: None, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 2
    assert message.lower() in " ".join(done.stderr.split()).lower()


def test_history_of_an_earlier_version_says_so(no_engine: None) -> None:
    done = CliRunner().invoke(group, ["history", "d1"])
    assert (done.exit_code, "kept no history" in done.stdout) == (0, True)
