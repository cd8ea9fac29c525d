"""MLflow's own server app, with a watch on what people move: `mlflow server --app-name mlflow-deploy`."""

from __future__ import annotations

import os
from typing import Any

from mlflow_deploy.config import state_home
from mlflow_deploy.files import locked
from mlflow_deploy.ui.watch import watch


def create_app() -> Any:
    """MLflow's app; stage transitions, aliases, tags and deletions give the controller a hint."""
    from mlflow.server import app as flask_app

    watch(flask_app)
    if os.environ.get("_MLFLOW_SGI_NAME") in ("gunicorn", "waitress"):
        return flask_app
    from mlflow.server.fastapi_app import app

    return app


def create_app_with_auth() -> Any:
    """The same with MLflow's basic authentication: a hint then tells who moved it."""
    from mlflow.server import app, auth

    watch(app)
    # Workers start at once, and each would make the tables of users.
    state_home().mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(state_home() / "auth.lock", wait=True):
        return auth.create_app(app)
