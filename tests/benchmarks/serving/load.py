"""A load generator: keep-alive connections that each send the next request when the answer is there.

Run as `python -m tests.benchmarks.serving.load PORT CONNECTIONS SECONDS FILE`, where FILE holds the bytes of
one HTTP request; prints requests per second and percentiles as JSON.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from pathlib import Path

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def load(port: int, connections: int, seconds: float, request: bytes) -> dict[str, float]:
    """Requests per second, latencies in milliseconds, and how many answers were not 200."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    sent: dict[int, float] = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLIN)
    clock = time.perf_counter
    latencies: list[float] = []
    failed = 0
    begun = clock()
    for at, connection in sockets.items():
        sent[at] = clock()
        connection.sendall(request)
    while clock() - begun < seconds:
        for at, _ in poll.poll(1):
            answer = _receive(sockets[at])
            now = clock()
            failed += answer[9:12] != b"200"
            latencies.append(now - sent[at])
            sent[at] = now
            sockets[at].sendall(request)
    took = clock() - begun
    for connection in sockets.values():
        connection.close()
    latencies.sort()
    count = len(latencies)
    return {
        "rps": count / took,
        "requests": count,
        "p50": latencies[count // 2] * 1e3 if count else float("inf"),
        "p99": latencies[int(count * 0.99)] * 1e3 if count else float("inf"),
        "failed": failed,
    }


def _receive(connection: socket.socket) -> bytes:
    """One whole answer; its head and body may come apart."""
    answer = connection.recv(1 << 20)
    while True:
        head, found, body = answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is not None and len(body) >= int(length[1]):
            return answer
        more = connection.recv(1 << 20)
        if not more:
            raise ConnectionError("the server closed the connection")
        answer += more


if __name__ == "__main__":
    result = load(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]).read_bytes())
    sys.stdout.write(json.dumps(result))
