"""The program of every image: finds the settings, refuses a missing GPU, becomes the scoring server."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

from mlflow_deploy.images import layout


def main(arguments: list[str] | None = None) -> int:
    """Replace this process by the server; returns an exit status when it cannot.

    The settings are those in the variable MLFLOW_DEPLOY_SETTINGS, as JSON, or those in the settings file.
    Further arguments go to the server.
    """
    given = os.environ.get(layout.SETTINGS_VARIABLE, "")
    try:
        document = json.loads(given or Path(layout.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _refuse(f"The settings cannot be read. {error}. Give JSON in {layout.SETTINGS_VARIABLE}")
    if os.environ.get(layout.DEVICE_VARIABLE) == "gpu" and not _may_fall_back(document) and not gpus():
        return _refuse(
            "This image needs a GPU and finds none. Start it with the engine's device request (`--gpus all`), "
            f"or allow the CPU with gpu_fallback=cpu ({layout.FALLBACK_VARIABLE}=cpu)"
        )
    settings = _write(given) if given else layout.SETTINGS
    command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", layout.BUNDLE]
    command += ["--host", "0.0.0.0", "--port", str(layout.PORT), "--settings", settings]  # noqa: S104
    command += sys.argv[1:] if arguments is None else arguments
    return os.execv(command[0], command)  # noqa: S606 - the server takes this process over


def gpus() -> int:
    """How many GPUs the NVIDIA driver offers to this container; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _may_fall_back(document: object) -> bool:
    serving = document.get("serving") if isinstance(document, dict) else None
    asked = serving.get("gpu_fallback") if isinstance(serving, dict) else None
    return "cpu" in (asked, os.environ.get(layout.FALLBACK_VARIABLE))


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
