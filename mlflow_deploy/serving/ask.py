"""Asks the server in this container on behalf of the deployment's own commands; prints the answer as base64.

The target runs it in the container through the engine. It imports the standard library only, and takes the
secret from the settings that the server was started with, so that no secret leaves the container.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import sys

ORDER = "MLFLOW_DEPLOY_ORDER"
"""Environment variable with the order."""
_SETTINGS = "MLFLOW_DEPLOY_SETTINGS"
_PORT = 8080
_TIMEOUT_SECONDS = 10.0


def main(path: str) -> int:
    """POST the order to a path; returns 1 when the answer is not 200."""
    control = json.loads(os.environ[_SETTINGS])["control"]
    status, body = ask("127.0.0.1", _PORT, path, os.environ[ORDER].encode(), control)
    sys.stdout.write(base64.b64encode(body).decode())
    return 0 if status == http.client.OK else 1


def ask(host: str, port: int, path: str, order: bytes, control: str) -> tuple[int, bytes]:
    """Status and body of the server's answer.

    Raises:
        OSError: it does not answer.
        http.client.HTTPException: its answer is not HTTP.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {control}", "Connection": "close"}
        connection.request("POST", path, order, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
