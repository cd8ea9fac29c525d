"""A small HTTP port beside other work: metrics and hints, on threads of its own."""

from __future__ import annotations

import http.server
import threading

from mlflow_deploy.errors import PortInUse


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
            self._server = http.server.ThreadingHTTPServer((host, port), handler)
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
