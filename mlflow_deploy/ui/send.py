"""Hints for a controller on another machine, or of another user: signed messages to its webhook port."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import msgspec

from mlflow_deploy.lifecycle.controller.listener import webhook_secret
from mlflow_deploy.lifecycle.controller.webhooks import ENTITY
from mlflow_deploy.lifecycle.hints import Hint
from mlflow_deploy.monitoring.webhook_signature import ID, SIGNATURE, TIMESTAMP, sign

VARIABLE = "MLFLOW_DEPLOY_CONTROLLER_URL"
"""Environment variable with the address of the controller's --webhook-port; unset = hints are files."""

_SECONDS = 5.0
_MOST_WAITING = threading.BoundedSemaphore(100)
_LOG = logging.getLogger("mlflow_deploy")


def controller_url() -> str:
    """Where the controller listens; empty when it has this server's state folder."""
    return os.environ.get(VARIABLE, "").rstrip("/")


def send(hint: Hint) -> None:
    """Send a hint soon, on another thread: people do not wait for it.

    Raises:
        ConfigError: the secret cannot be used.
    """
    secret = webhook_secret()
    if not _MOST_WAITING.acquire(blocking=False):
        _LOG.warning("the controller takes no hints; that of a move of %s is left out", hint.model)
        return
    _sender().submit(_send, controller_url(), secret, hint)


@functools.cache
def _sender() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="hints")


def _send(url: str, secret: str, hint: Hint) -> None:
    import requests

    event = {"entity": ENTITY, "action": "hint", "data": msgspec.to_builtins(hint)}
    body, delivery, at = msgspec.json.encode(event), uuid.uuid4().hex, str(int(time.time()))
    headers = {"Content-Type": "application/json", ID: delivery, TIMESTAMP: at}
    headers[SIGNATURE] = sign(secret, delivery, at, body)
    try:
        answer = requests.post(f"{url}/webhooks", data=body, headers=headers, timeout=_SECONDS)
        if not answer.ok:
            _LOG.warning(
                "the controller refuses a hint: %s %s", answer.status_code, answer.text.strip()[:200]
            )
    except requests.RequestException as error:
        _LOG.warning("the controller gets no hint of a move of %s: %s", hint.model, error)
    finally:
        _MOST_WAITING.release()
