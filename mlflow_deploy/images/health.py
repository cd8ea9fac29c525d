"""The health check of every image: exit status 0 when the server in this container says it is ready.

It runs every few seconds in an interpreter of its own, so it imports as little as can be: no package of ours,
no HTTP client.
"""

from __future__ import annotations

import os
import socket
import sys

PORT = 8080
TIMEOUT = 3.0
SETTINGS = "/etc/mlflow-deploy/settings.json"
_REQUEST = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def healthy(port: int = PORT) -> bool:
    """Whether GET /ping answers 200, or, where callers need a certificate, whether the port answers."""
    serving = _serving()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as plain:
        if not serving.get("tls_cert"):
            return _ping(plain)
        if serving.get("tls_client_ca"):
            return True
        import ssl

        # The certificate names the outside address, and this never leaves the container.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(plain) as encrypted:
            return _ping(encrypted)


def _ping(connection: socket.socket) -> bool:
    connection.sendall(_REQUEST)
    answer = b""
    while b"\r\n" not in answer:
        chunk = connection.recv(1024)
        if not chunk:
            return False
        answer += chunk
    return answer.split(b" ")[1:2] == [b"200"]


def _serving() -> dict[str, object]:
    """The serving part of the settings that the server was started with."""
    text = os.environ.get("MLFLOW_DEPLOY_SETTINGS", "")
    if not text:
        with open(SETTINGS, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would double the start time
            text = file.read()
    if "tls_" not in text:
        return {}
    import json

    serving: dict[str, object] = json.loads(text).get("serving", {})
    return serving


if __name__ == "__main__":
    try:
        sys.exit(0 if healthy() else 1)
    except OSError as error:
        sys.exit(f"not ready: {error}")
