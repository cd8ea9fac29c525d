"""Runs inside the gateway's container: starts Envoy, changes its traffic, tells whether it serves.

`run` is the container's program; the target calls the others through the engine, with what it wants as JSON in
the variable MLFLOW_DEPLOY_GATEWAY. Only the standard library is imported at the top: `alive` is the health
check, which runs every few seconds.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("/gateway")
"""The volume with the gateway's folder."""
ORDER = "MLFLOW_DEPLOY_GATEWAY"
PORT = 8080
REFUSED = 3
"""Exit status when the gateway refuses; its words are on standard output as JSON."""
_WEIGHTS = "weights.json"
_READY_SECONDS = 30.0
_DRAIN_SECONDS = 10.0


def run() -> int:
    """Become Envoy, with the traffic it had, or with the first that it is given."""
    from mlflow_deploy.gateway import binary
    from mlflow_deploy.gateway import run as gateway_run
    from mlflow_deploy.gateway.gateway import Gateway

    if not (FOLDER / "spec.json").exists():
        spec, backends, traffic = _order()
        _remember(traffic.weights)
        Gateway.prepare(FOLDER, spec, backends, traffic)
    gateway_run.main(str(FOLDER), *binary.arguments(Gateway(FOLDER).spec.threads))


def apply() -> int:
    """Change revisions and traffic; returns when what was left out can be stopped, 1 when it is too early."""
    from mlflow_deploy.gateway.gateway import Gateway

    if not (FOLDER / "spec.json").exists():
        sys.stderr.write("Error: the gateway is still being prepared\n")
        return 1
    spec, backends, traffic = _order()
    gateway = Gateway(FOLDER)
    gateway.wait_ready(_READY_SECONDS)
    gateway.apply(backends, traffic, spec=spec)
    _remember(traffic.weights)
    return 0


def drain() -> int:
    """Take no new connections and wait for the requests in flight."""
    from mlflow_deploy.gateway.gateway import Gateway

    Gateway(FOLDER).drain(_DRAIN_SECONDS)
    return 0


def weights() -> int:
    """Print the shares of the traffic."""
    sys.stdout.write((FOLDER / _WEIGHTS).read_text(encoding="ascii"))
    return 0


def alive() -> int:
    """Whether Envoy has read its configuration and serves."""
    with _admin() as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
        return 0 if b" 200 " in connection.recv(64) else 1


def page() -> int:
    """Print the page of Envoy's administration whose path the order is."""
    with _admin() as connection:
        request = f"GET {os.environ[ORDER]} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        sys.stdout.write(response.read().decode())
        return 0 if response.status == http.client.OK else REFUSED


def _admin() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(3.0)
    connection.connect(str(FOLDER / "admin.sock"))
    return connection


def _order() -> tuple[Any, Any, Any]:
    """(GatewaySpec, backends, Traffic) that the target asks for."""
    import msgspec

    from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Traffic

    document = json.loads(os.environ[ORDER])
    return (
        msgspec.convert(document["spec"], GatewaySpec, strict=False),
        msgspec.convert(document["backends"], list[Backend], strict=False),
        msgspec.convert(document["traffic"], Traffic, strict=False),
    )


def _remember(shares: dict[int, int]) -> None:
    from mlflow_deploy.files import write_atomic

    write_atomic(FOLDER / _WEIGHTS, json.dumps(shares).encode())


def main(arguments: list[str]) -> int:
    """Run one command."""
    commands = {"run": run, "apply": apply, "drain": drain, "weights": weights, "alive": alive, "page": page}
    try:
        return commands[arguments[0] if arguments else "run"]()
    except OSError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except Exception as error:
        from mlflow_deploy.errors import DeployError

        if not isinstance(error, DeployError):
            raise
        sys.stdout.write(json.dumps({"what": error.what, "why": error.why}) + "\n")
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
