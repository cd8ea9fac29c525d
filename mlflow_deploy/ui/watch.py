"""What a request to the MLflow server has moved in the registry, as a hint for the controller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import DeployError
from mlflow_deploy.lifecycle.hints import Hint, give
from mlflow_deploy.ui.send import controller_url, send

if TYPE_CHECKING:
    from flask import Flask, Response

_LOG = logging.getLogger("mlflow_deploy")
_OTHERS = {
    ("POST", "registered-models/rename"),
    ("DELETE", "registered-models/delete"),
    ("POST", "registered-models/set-tag"),
    ("DELETE", "registered-models/delete-tag"),
    ("POST", "model-versions/set-tag"),
    ("DELETE", "model-versions/delete-tag"),
}
"""Requests that may matter without moving a version; of tags, those that begin with `deploy.`."""


def watch(app: Flask) -> None:
    """Look at each request that the app has answered."""
    app.after_request(_after)


def _after(response: Response) -> Response:
    """Give a hint; whatever goes wrong with it, MLflow's answer stays."""
    from flask import g, request

    if response.status_code >= 400 or request.method == "GET":
        return response
    body = request.get_json(force=True, silent=True)
    asked = body if isinstance(body, dict) else request.args.to_dict()
    hint = hint_of(request.method, request.path, asked, str(g.get("mlflow_authenticated_user") or ""))
    if hint is None:
        return response
    try:
        if controller_url():
            send(hint)
        elif not give(hint):
            _LOG.warning("no controller takes hints from this server's state folder; this one is left out")
    except DeployError as error:
        _LOG.warning("the controller gets no hint of a move of %s: %s", hint.model, error.text)
    return response


def hint_of(method: str, path: str, asked: Mapping[str, Any], by: str) -> Hint | None:
    """The hint of a request that went well; None when it is of no interest.

    Args:
        path: of the request, with or without a prefix of the server's.
        asked: the request's fields.
        by: the authenticated user; empty without authentication.
    """
    # Both ways in, /api/2.0/mlflow/ of clients and /ajax-api/2.0/mlflow/ of the pages.
    what = (method, path.rpartition("/mlflow/")[2])
    model, version = str(asked.get("name") or ""), str(asked.get("version") or "")
    if not model or "/mlflow/" not in path:
        return None
    match what:
        case ("POST", "model-versions/transition-stage"):
            # MLflow takes stages in any case, and archives on "true" from forms of old clients too.
            archives = str(asked.get("archive_existing_versions", "")).lower() == "true"
            stage = str(asked.get("stage") or "").capitalize()
            return Hint(model=model, kind="stage", what=version, after=stage, archives=archives, by=by)
        case ("POST", "registered-models/alias"):
            return Hint(model=model, kind="alias", what=str(asked.get("alias") or ""), after=version, by=by)
        case ("DELETE", "registered-models/alias"):
            return Hint(model=model, kind="alias", what=str(asked.get("alias") or ""), by=by)
        case ("POST", "model-versions/create"):
            return Hint(model=model, by=by)
        case ("DELETE", "model-versions/delete"):
            return Hint(model=model, kind="version", what=version, after="removed", by=by)
    if what not in _OTHERS or ("tag" in path and not str(asked.get("key", "")).startswith("deploy.")):
        return None
    return Hint(model=model, by=by)
