"""Prometheus, Alertmanager and their checkers, from the system's packages, and a receiver of what they tell."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from click.testing import CliRunner

from mlflow_deploy.cli import group
from mlflow_deploy.monitoring.rules import alertmanager
from tests.waiting import eventually

ALERTMANAGER = "/alertmanager"
"""Path of the receiver that Alertmanager posts to."""


def program(*names: str) -> str:
    """Path of an installed program; the test is skipped, with the reason, without it."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(
        f"{names[0]} is not installed (Debian's packages prometheus and prometheus-alertmanager have it)"
    )


def check(*command: str) -> None:
    """Run a checker; what it prints is the failure."""
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Receiver:
    """A web server that keeps what is posted to it, by path."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        kept = self.got

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept.append((self.path, dict(self.headers), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def alerts(self, name: str) -> list[tuple[str, dict[str, str]]]:
        """(status, labels) of an alert as Alertmanager posted it."""
        bodies = [json.loads(body) for path, _, body in list(self.got) if path == ALERTMANAGER]
        return [
            (each["status"], each["labels"])
            for body in bodies
            for each in body["alerts"]
            if each["labels"]["alertname"] == name
        ]

    def own(self) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for path, headers, body in list(self.got) if path == "/own"]


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*command: str, ready: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_ready() -> bool:
        assert process.poll() is None, f"{command[0]} ended"
        try:
            return requests.get(ready, timeout=1).ok
        except requests.RequestException:
            return False

    try:
        eventually(is_ready, 20, f"{command[0]} is ready")
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def watched(folder: Path, webhook: str) -> Iterator[Callable[[str], list[Any]]]:
    """Prometheus and Alertmanager with the generated files, scraping each second; yields a query.

    Args:
        folder: has the files of `mlflow-deploy monitor targets` in `targets`.
        webhook: gets what Alertmanager tells.
    """
    binaries = program("prometheus"), program("prometheus-alertmanager", "alertmanager")
    prometheus, alerts = free(), free()
    runner = CliRunner()

    def made(*arguments: str) -> str:
        return runner.invoke(group, ["monitor", *arguments], catch_exceptions=False).output

    made("rules", "--pending", "1s", "--down", "1s", "--rate-window", "10s", "-o", str(folder / "rules.yml"))
    scraping = yaml.safe_load(
        made("prometheus", "--interval", "1s", "--targets", f"{folder}/targets",
             "--rules-file", f"{folder}/rules.yml")
    )  # fmt: skip
    scraping["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scraping))
    routing = alertmanager(webhook + ALERTMANAGER)
    routing["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(routing))
    with (
        running(
            binaries[1], f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/am",
            f"--web.listen-address=127.0.0.1:{alerts}", "--cluster.listen-address=",
            ready=f"http://127.0.0.1:{alerts}/-/ready",
        ),
        running(
            binaries[0], f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{prometheus}",
            # Alertmanager is found some seconds later; by itself an alert is sent again after a minute.
            "--rules.alert.resend-delay=1s",
            ready=f"http://127.0.0.1:{prometheus}/-/ready",
        ),
    ):  # fmt: skip

        def query(expression: str) -> list[Any]:
            answer = requests.get(
                f"http://127.0.0.1:{prometheus}/api/v1/query", {"query": expression}, timeout=5
            ).json()
            assert answer["status"] == "success", (expression, answer)
            return list(answer["data"]["result"])

        yield query
