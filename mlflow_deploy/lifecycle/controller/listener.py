"""The controller's port: metrics for Prometheus, and webhooks of the registry."""

from __future__ import annotations

import http.server
import logging
import os
import time
from pathlib import Path

from mlflow_deploy.errors import ConfigError, StateWriteFailed
from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
from mlflow_deploy.lifecycle.controller.webhooks import Deliveries, Verdict
from mlflow_deploy.lifecycle.hints import give
from mlflow_deploy.monitoring.http_port import HttpPort
from mlflow_deploy.monitoring.webhook_signature import ID

SECRET_VARIABLE = "MLFLOW_DEPLOY_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
"""Environment variable with the webhooks' secret; with _FILE after it, with the file that holds it."""

_MOST_BYTES = 64 * 1024
_READ_SECONDS = 10.0
_SHORTEST_SECRET = 16
_LOG = logging.getLogger("mlflow_deploy")


def webhook_secret() -> str:
    """The secret of the environment; empty when there is none.

    Raises:
        ConfigError: its file cannot be read, or it is too short to be one.
    """
    file = os.environ.get(f"{SECRET_VARIABLE}_FILE", "")
    try:
        secret = (
            Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(SECRET_VARIABLE, "")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{SECRET_VARIABLE}_FILE={file} cannot be read", why=str(error)) from error
    if (file or secret) and len(secret) < _SHORTEST_SECRET:
        raise ConfigError(
            "The webhooks' secret is too short",
            why=f"it has {len(secret)} characters",
            hint=f"Take at least {_SHORTEST_SECRET}, such as from `openssl rand -hex 32`",
        )
    return secret


class Listener:
    """Answers on the port, on threads of its own, until it is closed.

    Args:
        port: 0 for a free one.
        secret: of the webhooks; empty to take none.

    Raises:
        PortInUse: something else listens there.
    """

    def __init__(self, host: str, port: int, *, secret: str, metrics: ControllerMetrics) -> None:
        self._metrics = metrics
        self._deliveries = Deliveries(secret) if secret else None
        self._http = HttpPort(host, port, self._handler(), "listener")
        self.port = self._http.port

    def close(self) -> None:
        """Stop answering."""
        self._http.close()

    def _taken(self, request: http.server.BaseHTTPRequestHandler) -> Verdict:
        """Judge a delivery and leave its hint."""
        if self._deliveries is None:
            return Verdict(403, f"no webhooks are taken: {SECRET_VARIABLE} is not set")
        length = request.headers.get("Content-Length", "")
        if not length.isdecimal():
            return Verdict(411, "the body's length is not told")
        if int(length) > _MOST_BYTES:
            return Verdict(413, f"the body has more than {_MOST_BYTES} bytes")
        try:
            body = request.rfile.read(int(length))
        except TimeoutError:
            return Verdict(408, f"the body did not come within {_READ_SECONDS:g} s")
        verdict = self._deliveries.judge(dict(request.headers.items()), body, time.time())
        if verdict.hint is None:
            return verdict
        try:
            kept = give(verdict.hint)
        except StateWriteFailed as error:
            # MLflow tries again on this status.
            self._deliveries.forget(request.headers[ID])
            _LOG.warning("a webhook is lost for now: %s", error.text)
            return Verdict(503, "the hint cannot be kept")
        return verdict if kept else Verdict(200, "too many hints wait already")

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers GET /metrics and POST /webhooks."""

            timeout = _READ_SECONDS

            def do_GET(self) -> None:
                if self.path.partition("?")[0] == "/metrics":
                    self._answer(200, listener._metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
                else:
                    self._answer(404, b"there are /metrics and /webhooks\n")

            def do_POST(self) -> None:
                if self.path.partition("?")[0] != "/webhooks":
                    self._answer(404, b"there are /metrics and /webhooks\n")
                    return
                verdict = listener._taken(self)
                listener._metrics.webhooks.labels(str(verdict.status)).inc()
                self._answer(verdict.status, f"{verdict.reason}\n".encode())

            def _answer(self, status: int, body: bytes, content: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line; webhooks are counted."""

        return Handler
