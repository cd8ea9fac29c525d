"""Command line of the scoring server: `python -m mlflow_deploy.serving --bundle DIR`."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path

from mlflow_deploy.processes import die_with_parent


def main(arguments: list[str] | None = None) -> int:
    """Run the server until SIGTERM; returns the exit status.

    0 after a drained SIGTERM, 1 when the port is taken, 2 for a wrong command line, 78 for a bundle or
    configuration that cannot serve.
    """
    options = _parse(arguments)
    from mlflow_deploy.bundle import read_bundle
    from mlflow_deploy.errors import DeployError, PortInUse
    from mlflow_deploy.serving import logs
    from mlflow_deploy.serving.config import read_config
    from mlflow_deploy.serving.metrics import SharedMetrics
    from mlflow_deploy.serving.recorder import SharedRecorder
    from mlflow_deploy.serving.server import BROKEN, Server
    from mlflow_deploy.serving.worker import Launch

    try:
        config = read_config(options.settings)
        logs.set_up(config.serving.log_level, config.serving.log_format)
        bundle = read_bundle(options.bundle)
    except DeployError as error:
        sys.stderr.write(f"Error: {error.text}\n")
        return BROKEN
    try:
        _check_port(options.host, options.port)
    except PortInUse as error:
        sys.stderr.write(f"Error: {error.text}\n")
        return error.exit_status
    if options.die_with_parent:
        die_with_parent(signal.SIGTERM)
    workers = config.serving.workers
    launch = Launch(bundle, config, SharedMetrics(workers), SharedRecorder(workers))
    return Server(launch, options.host, options.port, wait=options.listen_when_ready).run()


def _check_port(host: str, port: int) -> None:
    """Raise PortInUse when a process holds the port that does not share it."""
    from mlflow_deploy.errors import PortInUse

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # The workers of two revisions share a port while one hands over to the other.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(host, port) from error


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m mlflow_deploy.serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=int, default=8080, help="port to bind")
    parser.add_argument(
        "--settings", type=Path, help="JSON file with deployment, revision and serving settings"
    )
    parser.add_argument(
        "--listen-when-ready",
        action="store_true",
        help="bind the port when the model is loaded and warmed up, not before",
    )
    parser.add_argument(
        "--die-with-parent", action="store_true", help="stop when the process that started this one ends"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
