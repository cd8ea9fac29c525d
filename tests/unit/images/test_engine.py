"""The engine's words become errors of ours."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_deploy.images import engine
from mlflow_deploy.images.errors import (
    BaseImageUnsuitable,
    BuildFailed,
    EngineNotRunning,
    EnginePermission,
    NoDiskSpace,
    RegistryRefused,
)


def test_events_show_progress_and_carry_the_last_words() -> None:
    shown: list[str] = []
    stream: list[dict[str, Any]] = [
        {"stream": "Step 1/2 : RUN x\n"},
        {"stream": " ---> Running in abc\n"},
        {"stream": "ERROR: no such thing\n"},
        {"status": "Pulling", "id": "abc", "progress": "[=>]"},
        {"error": "short", "errorDetail": {"message": "The command 'x' returned a non-zero code: 1"}},
    ]
    assert engine.events(stream, shown.append) == (
        "ERROR: no such thing; The command 'x' returned a non-zero code: 1"
    )
    assert shown == ["Step 1/2 : RUN x", "ERROR: no such thing", "Pulling abc [=>]"]
    assert engine.events([{"stream": "done"}], shown.append) == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("('Connection aborted.', PermissionError(13, 'Permission denied'))", EnginePermission),
        ("('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))", EngineNotRunning),
        ("('Connection aborted.', ConnectionRefusedError(111, 'Connection refused'))", EngineNotRunning),
    ],
)
def test_connections(text: str, kind: type[Exception]) -> None:
    assert isinstance(engine._no_connection(ConnectionError(text)), kind)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write /x: no space left on device", NoDiskSpace),
        ("mlflow-deploy: unsuitable base image: its Python is 3.9; returned 1", BaseImageUnsuitable),
        ('exec: "python3": executable file not found in $PATH', BaseImageUnsuitable),
        ("anything", BuildFailed),
    ],
)
def test_builds(text: str, kind: type[Exception]) -> None:
    assert isinstance(engine.build_failure("image:1", "base:1", text), kind)


def test_transfers() -> None:
    assert isinstance(engine.transfer_failure("i:1", "push", "no space left on device"), NoDiskSpace)
    refused = engine.transfer_failure("i:1", "push", "denied at https://user:pass@host")
    assert isinstance(refused, RegistryRefused)
    assert "pass" not in refused.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", ("a", "latest")),
        ("a:1", ("a", "1")),
        ("host:5000/a", ("host:5000/a", "latest")),
        ("host:5000/a/b:1", ("host:5000/a/b", "1")),
        ("a@sha256:00", ("a", "sha256:00")),
    ],
)
def test_names(name: str, expected: tuple[str, str]) -> None:
    assert engine.split_name(name) == expected
