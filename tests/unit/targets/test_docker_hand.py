"""What the process that acts for a container's monitors is started for, and with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.config import parse_spec
from mlflow_deploy.targets.base_monitor import order_of
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord
from mlflow_deploy.targets.docker_hand import _environment, _needed


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({}, False),
        ({"monitor.action.drift": "notify"}, False),
        ({"monitor.action.performance": "notify,rollback"}, True),
        ({"monitor.alert.webhook": "env:HOOK"}, True),
    ],
)
def test_it_runs_where_only_this_machine_can_do_what_follows(config: dict[str, Any], needed: bool) -> None:
    revision = RevisionRecord(
        number=1,
        bundle="sha256-1",
        format="onnx",
        model_uri="models:/m/1",
        resolved_uri="models:/m/1",
        model_name="m",
        model_version="1",
        fallback="",
        parity="",
        spec=parse_spec(config).model_dump(mode="json"),
        created_at="2026-01-01T00:00:00+00:00",
    )
    record = DeploymentRecord(
        name="d1",
        phase="ready",
        host="127.0.0.1",
        port=9500,
        gateway="none",
        revisions=(revision,),
        weights={1: 100},
        created_at=revision.created_at,
        updated_at=revision.created_at,
    )
    order = order_of(record, "docker")
    assert order is not None
    assert _needed(order) is needed


def test_no_password_comes_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@server")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", '{"auths": {}}')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.com")
    monkeypatch.setenv("MLFLOW_DEPLOY_TOKEN", "secret")
    told: list[str] = []
    found = _environment(tmp_path, told.append)
    assert (found["DOCKER_HOST"], found["MLFLOW_DEPLOY_HOME"]) == ("ssh://me@server", str(tmp_path))
    assert "secret" not in str(found)
    assert told == [
        "The process that acts for the monitors does not get DOCKER_AUTH_CONFIG, MLFLOW_TRACKING_URI"
    ]
