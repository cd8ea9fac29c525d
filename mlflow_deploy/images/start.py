"""The program of every image: finds the settings, refuses a missing GPU, becomes the scoring server."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy.images import layout
from mlflow_deploy.serving.backends.devices import gpus

_OPEN = (None, "auto", "refuse")
"""Values of the server's settings that decide nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Replace this process by the server; returns an exit status when it cannot.

    The settings are those in the variable MLFLOW_DEPLOY_SETTINGS, as JSON, or those in the settings file.
    What the image says of GPUs counts where these do not. Further arguments go to the server.
    """
    given = os.environ.get(layout.SETTINGS_VARIABLE, "")
    try:
        document = json.loads(given or Path(layout.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _refuse(f"The settings cannot be read. {error}. Give JSON in {layout.SETTINGS_VARIABLE}")
    if os.environ.get(layout.DEVICE_VARIABLE) == "gpu":
        document = with_gpu(document, os.environ)
        if _needs_gpu(document) and not gpus():
            return _refuse(
                "This image needs a GPU and finds none. Start it with the engine's device request "
                "(`--gpus all`), or allow the CPU with gpu_fallback=cpu "
                f"({layout.FALLBACK_VARIABLE}=cpu)"
            )
        given = json.dumps(document)
    settings = _write(given) if given else layout.SETTINGS
    command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", layout.BUNDLE]
    command += ["--host", "0.0.0.0", "--port", str(layout.PORT), "--settings", settings]  # noqa: S104
    command += sys.argv[1:] if arguments is None else arguments
    return os.execv(command[0], command)  # noqa: S606 - the server takes this process over


def with_gpu(document: Any, environment: Mapping[str, str]) -> Any:
    """The settings of a GPU image: what its variables say of GPUs, where the settings leave it open."""
    serving = _serving(document)
    if serving is None:
        # The server says what is wrong with them.
        return document
    said = {
        "device": "gpu",
        "gpu_provider": environment.get(layout.PROVIDER_VARIABLE, ""),
        "gpu_fallback": environment.get(layout.FALLBACK_VARIABLE, ""),
    }
    left_open = {key: value for key, value in said.items() if value and serving.get(key) in _OPEN}
    return {**document, "serving": {**serving, **left_open}}


def _serving(document: Any) -> dict[str, Any] | None:
    serving = document.get("serving", {}) if isinstance(document, dict) else None
    return serving if isinstance(serving, dict) else None


def _needs_gpu(document: Any) -> bool:
    serving = _serving(document) or {}
    return serving.get("device") == "gpu" and serving.get("gpu_fallback") != "cpu"


def _write(text: str) -> str:
    """Settings from the environment as a file, since the server reads files."""
    fd, name = tempfile.mkstemp(prefix="settings-", suffix=".json")
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def _refuse(text: str) -> int:
    sys.stderr.write(f"Error: {text}.\n")
    return layout.BROKEN


if __name__ == "__main__":
    sys.exit(main())
