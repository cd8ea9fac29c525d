"""The programs inside an image: the health check against real sockets, the start's refusals, the trimming."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.images import health, install, layout, start
from mlflow_deploy.serving.config import parse_config


@contextmanager
def answering(*chunks: bytes) -> Iterator[int]:
    """A server that answers one request with these chunks; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                for chunk in chunks:
                    connection.sendall(chunk)

        thread = threading.Thread(target=answer)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join(60)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ((b"HTTP/1.1 200 OK\r\n\r\n",), True),
        ((b"HTT", b"P/1.1 20", b"0 OK\r\n\r\n"), True),
        ((b"HTTP/1.1 503 Service Unavailable\r\n\r\n",), False),
        ((), False),
    ],
)
def test_health(monkeypatch: pytest.MonkeyPatch, chunks: tuple[bytes, ...], expected: bool) -> None:
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, "{}")
    with answering(*chunks) as port:
        assert health.healthy(port) is expected


def test_health_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, "{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        health.healthy(port)


def test_health_where_callers_need_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = {"tls_cert": "/c", "tls_key": "/k", "tls_client_ca": "/a"}
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, json.dumps({"serving": serving}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert health.healthy(server.getsockname()[1])


def test_health_knows_where_things_are() -> None:
    assert (health.PORT, health.SETTINGS) == (layout.PORT, layout.SETTINGS)
    text = Path(health.__file__).read_text()
    assert layout.SETTINGS_VARIABLE in text


def test_start_refuses_what_cannot_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, "{not json")
    assert start.main([]) == layout.BROKEN
    assert "The settings cannot be read" in capsys.readouterr().err
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, "{}")
    monkeypatch.setenv(layout.DEVICE_VARIABLE, "gpu")
    monkeypatch.setattr(start, "gpus", lambda: 0)
    assert start.main([]) == layout.BROKEN
    assert "needs a GPU and finds none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "variable"), [('{"serving": {"gpu_fallback": "cpu"}}', ""), ("{}", "cpu")]
)
def test_start_becomes_the_server(monkeypatch: pytest.MonkeyPatch, settings: str, variable: str) -> None:
    taken: list[str] = []
    monkeypatch.setattr(os, "execv", lambda path, command: taken.extend(command))
    monkeypatch.setattr(start, "gpus", lambda: 0)
    monkeypatch.setenv(layout.SETTINGS_VARIABLE, settings)
    monkeypatch.setenv(layout.DEVICE_VARIABLE, "gpu")
    monkeypatch.setenv(layout.FALLBACK_VARIABLE, variable)
    start.main(["--listen-when-ready"])
    path = Path(taken[taken.index("--settings") + 1])
    assert json.loads(path.read_text()) == {"serving": {"device": "gpu", "gpu_fallback": "cpu"}}
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    assert taken[:5] == [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", layout.BUNDLE]
    assert taken[-1] == "--listen-when-ready"


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ({}, {"device": "gpu", "gpu_provider": "tensorrt", "gpu_fallback": "cpu"}),
        # Targets give every setting, also those that nobody chose.
        (
            {"device": "auto", "gpu_provider": "auto", "gpu_fallback": "refuse", "workers": 2},
            {"device": "gpu", "gpu_provider": "tensorrt", "gpu_fallback": "cpu", "workers": 2},
        ),
        (
            {"device": "cpu", "gpu_provider": "cuda"},
            {"device": "cpu", "gpu_provider": "cuda", "gpu_fallback": "cpu"},
        ),
    ],
)
def test_a_gpu_image_says_what_the_settings_leave_open(
    serving: dict[str, Any], expected: dict[str, Any]
) -> None:
    environment = {layout.PROVIDER_VARIABLE: "tensorrt", layout.FALLBACK_VARIABLE: "cpu"}
    document = start.with_gpu({"deployment": "d", "serving": serving}, environment)
    assert document == {"deployment": "d", "serving": expected}
    assert parse_config(document).serving.gpu_provider == expected["gpu_provider"]


def test_settings_that_are_none_are_left_to_the_server() -> None:
    assert start.with_gpu({"serving": []}, {}) == {"serving": []}


def test_the_programs_need_nothing_installed() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import mlflow_deploy.images.start, mlflow_deploy.images.health, mlflow_deploy.images.sbom\n"
        "import mlflow_deploy.images.install\n"
        "print([n for n in ('pydantic', 'msgspec', 'docker', 'packaging', 'requests') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_trimming_keeps_what_others_import(tmp_path: Path) -> None:
    tests = tmp_path / "numpy" / "_core" / "tests"
    tests.mkdir(parents=True)
    for name in ("_natype.py", "__init__.py", "test_all.py", "data.npy"):
        (tests / name).touch()
    mine = tmp_path / "mine" / "tests"
    mine.mkdir(parents=True)
    (mine / "test_all.py").touch()
    (tmp_path / "onnxruntime" / "tools").mkdir(parents=True)
    programs = tmp_path / "torch" / "bin"
    programs.mkdir(parents=True)
    for name in ("torch_shm_manager", "test_jit"):
        (programs / name).touch()
    install.trim_packages(tmp_path)
    assert {path.name for path in tests.iterdir()} == {"_natype.py", "__init__.py"}
    assert (mine / "test_all.py").exists()
    assert not (tmp_path / "onnxruntime" / "tools").exists()
    # torch does not import without it.
    assert [path.name for path in programs.iterdir()] == ["torch_shm_manager"]


def test_every_user_may_read_and_nobody_else_write(tmp_path: Path) -> None:
    for name, mode in (("file", 0o600), ("program", 0o700), ("open", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    install.open_up(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": 0o644, "program": 0o755, "open": 0o644}
