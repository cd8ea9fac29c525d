"""A little HTTP server that stands for a replica; as a program it can be killed: `python toy.py NAME PORT`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Toy:
    """A replica in this process, and what it has seen.

    Paths: /ping, /invocations (names itself), /slow/SECONDS, /status/CODE, /break (closes before an answer),
    /half (closes in the middle of an answer), /exit-before and /exit-half (the same by the end of its process).
    """

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.healthy = True
        self.broken = False
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler(), bind_and_activate=False)
        self.server.allow_reuse_address = True
        self.server.request_queue_size = 128
        self.server.server_bind()
        self.server.server_activate()
        self.server.daemon_threads = True
        self.port = int(self.server.server_address[1])
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def paths(self) -> list[str]:
        """Paths asked for, health checks left out."""
        return [path for _, path, _ in list(self.seen) if path != "/ping"]

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def _handler(toy) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._do()

            def do_POST(self) -> None:
                self._do()

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def _do(self) -> None:
                size = len(self._body())
                headers = {key.lower(): value for key, value in self.headers.items()}
                toy.seen.append((self.command, self.path, headers))
                _, verb, *rest = self.path.split("/")
                if verb == "ping":
                    self._answer(200 if toy.healthy else 503, size)
                elif verb == "slow":
                    time.sleep(float(rest[0]))
                    self._answer(200, size)
                elif verb == "status" or toy.broken:
                    self._answer(int(rest[0]) if rest else 503, size)
                elif verb in ("break", "exit-before"):
                    self._end(verb)
                elif verb in ("half", "exit-half"):
                    self.send_response(200)
                    self.send_header("content-length", "1000")
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.wfile.flush()
                    time.sleep(0.05)
                    self._end(verb)
                else:
                    self._answer(200, size)

            def _end(self, verb: str) -> None:
                if verb.startswith("exit"):
                    os._exit(9)
                self.close_connection = True

            def _answer(self, status: int, size: int) -> None:
                body = json.dumps({"from": toy.name, "size": size}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


if __name__ == "__main__":
    Toy(sys.argv[1], int(sys.argv[2]))
    threading.Event().wait()
