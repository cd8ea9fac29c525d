"""Starts real gateways and replicas, and keeps a steady load on them."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.gateway.gateway import Gateway
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Replica, Traffic
from tests.waiting import eventually

TOY = Path(__file__).with_name("toy.py")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def backend(revision: int, *ports: int, **options: Any) -> Backend:
    """A revision with replicas on these ports of this machine."""
    return Backend(revision=revision, replicas=tuple(Replica("127.0.0.1", port) for port in ports), **options)


@dataclass
class Running:
    """A gateway and its process."""

    gateway: Gateway
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.gateway.spec.port

    def call(
        self, path: str = "/invocations", method: str = "POST", body: bytes | None = b"{}", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and parsed body of one request over its own connection; `_` in a header is `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=None if method == "GET" else body, headers=names)
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, json.loads(text) if text else None
        finally:
            connection.close()

    def calls(self, count: int, path: str = "/invocations", **headers: str) -> Counter[str]:
        """How many of so many requests over one connection each revision answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        found: Counter[str] = Counter()
        for _ in range(count):
            connection.request("POST", path, body=b"{}", headers=names)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            found[response.headers["x-mlflow-deploy-revision"]] += 1
        connection.close()
        return found

    def access_log(self) -> list[dict[str, Any]]:
        """The lines of its access log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def start(gateway: Gateway, log: Path) -> Running:
    """Start the gateway's process and wait until it serves."""
    with log.open("ab") as file:
        process = subprocess.Popen(gateway.command(), stdout=file, stderr=file)
    running = Running(gateway, process, log)
    try:
        gateway.wait_ready()
    except BaseException:
        stop(running)
        raise
    return running


def stop(running: Running) -> None:
    """End the gateway's process."""
    if running.process.poll() is None:
        running.process.terminate()
    running.process.wait(60)


@contextlib.contextmanager
def running(folder: Path, backends: Sequence[Backend], traffic: Traffic, **options: Any) -> Iterator[Running]:
    """A ready gateway, stopped at the end."""
    spec = GatewaySpec(deployment="toy", host="127.0.0.1", port=free_port(), **options)
    gateway = Gateway.prepare(folder / "gateway", spec, backends, traffic)
    process = start(gateway, folder / "gateway.log")
    try:
        yield process
    finally:
        stop(process)


@contextlib.contextmanager
def toy_process(name: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A replica in a process of its own, which listens."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(TOY), name, str(port)])
    try:
        eventually(lambda: listens(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def scoring_server(
    bundle: Bundle, folder: Path, revision: int = 1
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The real scoring server of a bundle, ready, and its port."""
    port = free_port()
    settings = folder / f"settings-{port}.json"
    settings.write_text(json.dumps({"deployment": "toy", "revision": revision}))
    command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--settings", str(settings)]
    with (folder / f"server-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--listen-when-ready", "--die-with-parent"], stdout=log, stderr=log
        )
    try:
        eventually(lambda: listens(port), 40)
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


def listens(port: int) -> bool:
    """Whether a connection to the port can be made."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Load:
    """Clients that ask all the time, each over a connection that it keeps; use as a context."""

    port: int
    clients: int = 4
    pause: float = 0.008
    path: str = "/invocations"
    body: bytes = b'{"x": 1}'
    answers: list[tuple[float, int, str, bytes]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, begin: float = 0.0) -> Counter[str]:
        """How many requests since a time each revision answered."""
        return Counter(revision for at, _, revision, _ in list(self.answers) if at >= begin)

    def bad(self) -> list[tuple[float, int, str, bytes]]:
        """Answers that are not 200."""
        return [answer for answer in self.answers if answer[1] != 200]

    def lost(self) -> list[str]:
        """Everything that is not an answer of 200."""
        return [*self.failures, *(f"{status} {text.decode()}" for _, status, _, text in self.bad())]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self._stop.wait(self.pause):
            begun = time.monotonic()
            try:
                connection.request(
                    "POST", self.path, body=self.body, headers={"content-type": "application/json"}
                )
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            revision = response.headers.get("x-mlflow-deploy-revision", "")
            self.answers.append((begun, response.status, revision, text))
        connection.close()


def within(count: int, total: int, share: float, sigmas: float = 4.5) -> bool:
    """Whether a count fits a binomial share."""
    return abs(count - total * share) <= sigmas * math.sqrt(total * share * (1 - share)) + 1e-9
