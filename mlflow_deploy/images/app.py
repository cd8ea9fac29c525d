"""The part of mlflow_deploy that goes into an image: the server and what it stands on."""

from __future__ import annotations

from pathlib import Path

import mlflow_deploy

_INSIDE = {"__init__", "health", "layout", "sbom", "start"}
"""Files of this room that run inside the image."""
_OUTSIDE = {
    "_projects", "cli", "demo", "gateway", "lifecycle", "monitoring", "plugin", "rollout", "targets", "testing",
    "ui",
}  # fmt: skip
_MODEL_ONLY = {"conversion", "flavors"}
"""Rooms that only pyfunc models may need, because custom flavors load themselves with them."""


def app_files(*, pyfunc: bool) -> dict[str, Path | bytes]:
    """The files of the package by their path in the image's `app` folder.

    Args:
        pyfunc: the image's servable is an MLflow model, which may be of one of our flavors.
    """
    package = Path(mlflow_deploy.__file__).parent
    files: dict[str, Path | bytes] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        if room in _OUTSIDE or (room in _MODEL_ONLY and not pyfunc):
            continue
        if room == "images" and parts[1] not in _INSIDE:
            continue
        files[f"mlflow_deploy/{path.relative_to(package).as_posix()}"] = path
    version = mlflow_deploy.__version__
    metadata = f"Metadata-Version: 2.1\nName: mlflow-deploy\nVersion: {version}\nLicense: Apache-2.0\n"
    files[f"mlflow_deploy-{version}.dist-info/METADATA"] = metadata.encode()
    return files
