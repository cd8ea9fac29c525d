"""Where things lie inside every image. Imports nothing: the image's own programs read it too."""

from __future__ import annotations

ROOT = "/opt/mlflow-deploy"
VENV = f"{ROOT}/venv"
PYTHON = f"{VENV}/bin/python"
APP = f"{ROOT}/app"
BUNDLE = f"{ROOT}/bundle"
SBOM = f"{ROOT}/sbom.cdx.json"
LOCK = f"{ROOT}/requirements.lock"
SETTINGS = "/etc/mlflow-deploy/settings.json"
"""Settings file of the server; mount another one over it, or give its JSON in `SETTINGS_VARIABLE`."""
SETTINGS_VARIABLE = "MLFLOW_DEPLOY_SETTINGS"
DEVICE_VARIABLE = "MLFLOW_DEPLOY_DEVICE"
PROVIDER_VARIABLE = "MLFLOW_DEPLOY_GPU_PROVIDER"
FALLBACK_VARIABLE = "MLFLOW_DEPLOY_GPU_FALLBACK"
PORT = 8080
GRPC_PORT = 8081
BROKEN = 78
"""Exit status for what can never serve; EX_CONFIG of sysexits.h, as the server has it."""
