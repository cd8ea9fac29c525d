"""A tiny package of the tests, as a wheel and as a lock that images are built from."""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

from mlflow_deploy.files import sha256_file


def tiny_wheel(folder: Path, *, ballast: int = 0, library: str = "") -> Path:
    """Write a wheel of the package `privatepkg`, whose content is new each time, so that no image has it yet.

    Args:
        ballast: bytes to add that cannot be compressed.
        library: path of an empty file to add, as the wheels of CUDA have their libraries.
    """
    folder.mkdir(parents=True)
    path = folder / "privatepkg-1.0-py3-none-any.whl"
    info = "privatepkg-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("privatepkg.py", f"VALUE = 42\nBUILD = '{uuid.uuid4()}'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: privatepkg\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        if ballast:
            wheel.writestr("privatepkg.bin", os.urandom(ballast))
        if library:
            wheel.writestr(library, b"")
    return path


def small_lock(folder: Path, **wheel: Any) -> dict[str, Any]:
    """Settings for a runtime with this one package, which builds fast."""
    path = tiny_wheel(folder / "wheels", **wheel)
    (folder / "lock.txt").write_text(f"privatepkg==1.0 --hash=sha256:{sha256_file(path)}\n")
    return {"lock": folder / "lock.txt", "wheels": folder / "wheels", "pip_args": "--no-index"}
