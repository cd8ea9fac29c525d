"""A small HTTP port beside other work: metrics and hints, on threads of its own."""

from __future__ import annotations

import http.server
import sys
import threading
from typing import Any

from mlflow_deploy.errors import PortInUse


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of what went wrong here; a client that does not wait for its answer is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class HttpPort:
    """Answers until it is closed.

    Args:
        port: 0 for a free one; `port` tells which.
        name: of its thread.

    Raises:
        PortInUse: something else listens there.
    """

    def __init__(
        self, host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler], name: str
    ) -> None:
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise PortInUse(host, port) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
