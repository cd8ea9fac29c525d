"""What is prepared before anybody asks, and that nothing out of date is ever taken."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from mlflow_deploy.bundle import ModelSource
from mlflow_deploy.config import DeploymentSpec, state_home
from mlflow_deploy.lifecycle.controller.preparing import upcoming_of
from mlflow_deploy.lifecycle.controller.state import Memory, Seen
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.lifecycle.prepared import (
    FOLDER,
    bundle_key,
    digest_of,
    keep,
    key_of,
    recall,
    recall_bundle,
)

SOURCE = ModelSource(uri="models:/a/1", name="a", version="1", digest="d1")
SPEC = DeploymentSpec()
ROWS = pd.DataFrame({"x": [1.0, 2.0], "y": ["a", None]})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path))
    return tmp_path


def test_a_bundle_is_known_by_all_that_it_was_made_from() -> None:
    others = [
        (ModelSource(uri="models:/a/1", name="a", version="1", digest="d2"), SPEC, [ROWS]),
        (SOURCE, SPEC.model_copy(update={"format": "pyfunc"}), [ROWS]),
        (SOURCE, SPEC, [ROWS.assign(x=[1.0, 3.0])]),
        (SOURCE, SPEC, [ROWS.rename(columns={"x": "z"})]),
        (SOURCE, SPEC, [None]),
    ]
    keys = [bundle_key(*each) for each in others]
    assert len({bundle_key(SOURCE, SPEC, [ROWS]), *keys}) == 6
    assert bundle_key(SOURCE, SPEC, [ROWS.copy()]) == bundle_key(SOURCE, SPEC, [ROWS])
    odd = pd.DataFrame({"x": [[1], [2]]})
    assert (digest_of(odd), bundle_key(SOURCE, SPEC, [odd])) == ("", ""), "no digest, so it is made each time"


def test_what_is_old_or_gone_is_made_again(home: Path) -> None:
    key = key_of("gate smoke", {"bundle": "b"})
    assert recall(key) is None
    keep(key, {"bundle": "sha256-none"})
    assert recall(key) == {"bundle": "sha256-none"}
    assert recall_bundle(key) is None, "the bundle was pruned"
    file = state_home() / FOLDER / f"{key}.json"
    os.utime(file, (1.0, 1.0))
    assert recall(key) is None
    keep(key_of("gate smoke", {"bundle": "c"}), {})
    assert not file.exists()


def _upcoming(home: Path, stage: dict[str, Any], versions: dict[str, str], **aliases: str) -> list[str]:
    """Versions that are prepared where version 2 serves; `versions` are the newest ones by MLflow's stage."""
    memory = Memory(home / "controller.json")
    memory.put("a", "Production", Seen(settled="2", wanted="2"))
    latest = [SimpleNamespace(version=number, current_stage=each) for each, number in versions.items()]
    model: Any = SimpleNamespace(name="a", aliases=aliases, latest_versions=latest)
    production = StagePolicy(**{"name": "Production", "deployment": "a", "gates": ["security"], **stage})
    policy = ModelPolicy(stages=(StagePolicy(name="Staging", alias="challenger"), production))
    return [each.version for each in upcoming_of(model, policy, memory)]


def test_what_may_come_next_is_prepared(home: Path) -> None:
    assert _upcoming(home, {}, {"None": "3", "Production": "2"}) == ["3"]
    assert _upcoming(home, {}, {"None": "1", "Production": "2"}) == [], "older ones were passed over"
    assert _upcoming(home, {}, {"None": "10", "Staging": "4"}, challenger="9") == ["10", "9", "4"]
    assert _upcoming(home, {}, {"Staging": "2"}) == [], "it serves already"


@pytest.mark.parametrize(
    "stage",
    [
        {"gates": ["signature"]},
        {"gates": {"security": {"optional": True}}},
        {"prepare": False},
        {"deployment": ""},
    ],
)
def test_what_nobody_asked_for_is_not_loaded_unchecked(home: Path, stage: dict[str, Any]) -> None:
    assert _upcoming(home, stage, {"None": "3", "Staging": "4"}) == []
