"""Starts real server processes for the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    """A port that is free now, and whose successor is, too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@dataclass
class Running:
    """A server process and its address."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    url: str

    def client(self, **options: Any) -> httpx.Client:
        """A client of the server."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def spawn(
    bundle: Path,
    folder: Path,
    *,
    arguments: tuple[str, ...] = (),
    port: int = 0,
    deployment: str = "toy",
    prefix: tuple[str, ...] = (),
    data: Path | None = None,
    capture: dict[str, Any] | None = None,
    **serving: Any,
) -> Running:
    """Start a server and return at once."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    settings = folder / f"settings-{port}.json"
    document = {"deployment": deployment, "revision": 3, "serving": serving}
    document |= {"data": os.fspath(data or ""), "capture": capture or {}}
    settings.write_text(json.dumps(document))
    log = folder / f"log-{port}-{time.monotonic_ns()}"
    command = [*prefix, sys.executable, "-m", "mlflow_deploy.serving", "--bundle", os.fspath(bundle)]
    command += ["--port", str(port), "--settings", os.fspath(settings), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stderr=file, stdout=file, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    scheme = "https" if serving.get("tls_cert") else "http"
    return Running(process, port, log, f"{scheme}://127.0.0.1:{port}")


def wait_ready(server: Running, seconds: float = 120, **client: Any) -> Running:
    """Wait until /ping answers 200."""
    end = time.monotonic() + seconds
    with server.client(**client) as http:
        while time.monotonic() < end:
            assert server.process.poll() is None, server.log.read_text()
            try:
                if http.get("/ping").status_code == 200:
                    return server
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    raise AssertionError(f"not ready: {server.log.read_text()}")


@contextmanager
def running(bundle: Path, folder: Path, **options: Any) -> Iterator[Running]:
    """A ready server, stopped at the end."""
    server = spawn(bundle, folder, **options)
    try:
        yield wait_ready(server)
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


def workers(server: Running) -> list[int]:
    """Process ids of the workers."""
    text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]
