"""The HTTP server's own floor: the same granian with a handler that parses the body and sends it back."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server import Server

_HEADERS = [("content-type", "application/json")]


def application(environ: dict[str, Any], start: Any) -> list[bytes]:
    """Parse, echo."""
    body = msgspec.json.encode(msgspec.json.decode(environ["wsgi.input"].read()))
    start("200 OK", _HEADERS)
    return [body]


if __name__ == "__main__":
    Server(
        "tests.benchmarks.serving.echo:application",
        port=int(sys.argv[1]),
        interface=Interfaces.WSGI,
        blocking_threads=73,
        log_level=LogLevels.error,
    ).serve()
