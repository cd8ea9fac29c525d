"""Talks to Envoy's administration, over a Unix socket or a port of its own."""

from __future__ import annotations

import dataclasses
import http.client
import os
import re
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.gateway.documents import ADMIN_SOCKET, CDS, VERSION_STATISTICS
from mlflow_deploy.gateway.errors import GatewayUnavailable
from mlflow_deploy.gateway.spec import GatewaySpec

_TIMEOUT_SECONDS = 5.0
_LINE = re.compile(r"^(?P<name>\S+): (?P<value>.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Taken:
    """What Envoy has made of a discovery file.

    Attributes:
        version: of the document that it works by; empty before the first.
        refused: how many documents it could not read or did not take since it was started.
        preparing: it has taken clusters that it does not use yet, because their health is not known.
    """

    version: str
    refused: int
    preparing: bool


class Admin:
    """The administration of the Envoy of one folder."""

    def __init__(self, folder: Path, spec: GatewaySpec) -> None:
        self._folder = folder
        self._spec = spec

    def get(self, path: str, **query: str) -> str:
        """The body of a page; `query` values are encoded.

        Raises:
            GatewayUnavailable: nobody answers, or with an error.
        """
        status, body = self._call("GET", path, query)
        if status != 200:
            raise GatewayUnavailable(
                self._folder, f"its administration answers {status} to {path}: {body[:200]}"
            )
        return body

    def post(self, path: str) -> None:
        """Ask for a change; same errors as `get`."""
        status, body = self._call("POST", path, {})
        if status != 200:
            raise GatewayUnavailable(
                self._folder, f"its administration answers {status} to {path}: {body[:200]}"
            )

    def live(self) -> bool:
        """Whether Envoy has read its first configuration and serves."""
        return self._call("GET", "/ready", {})[0] == 200

    def numbers(self, pattern: str) -> dict[str, str]:
        """Statistics whose name matches the regular expression, as text; histograms left out."""
        text = self.get("/stats", filter=pattern)
        return {match["name"]: match["value"].strip('"') for match in _LINE.finditer(text)}

    def taken(self) -> dict[str, Taken]:
        """What Envoy has made of each discovery file."""
        names = "|".join(re.escape(prefix) for prefix in VERSION_STATISTICS.values())
        kinds = "version_text|update_rejected|update_failure"
        numbers = self.numbers(rf"^(({names})\.({kinds})|cluster_manager\.warming_clusters)$")
        warming = int(numbers.get("cluster_manager.warming_clusters", "0")) > 0
        found = {}
        for file, prefix in VERSION_STATISTICS.items():
            refused = sum(
                int(numbers.get(f"{prefix}.{kind}", "0")) for kind in ("update_rejected", "update_failure")
            )
            version = numbers.get(f"{prefix}.version_text", "")
            found[file] = Taken(version, refused, preparing=warming and file == CDS)
        return found

    def listener_error(self) -> str:
        """Why Envoy refused its listener, or an empty string."""
        dump = msgspec.json.decode(self.get("/config_dump", resource="dynamic_listeners"))
        errors = (entry.get("error_state", {}).get("details", "") for entry in dump.get("configs", []))
        return next((str(text) for text in errors if text), "")

    def _call(self, method: str, path: str, query: dict[str, str]) -> tuple[int, str]:
        connection = self._connection()
        try:
            connection.request(method, path + ("?" + urllib.parse.urlencode(query) if query else ""))
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise GatewayUnavailable(self._folder, str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._spec.admin_port:
            return http.client.HTTPConnection(
                self._spec.admin_host, self._spec.admin_port, timeout=_TIMEOUT_SECONDS
            )
        return _UnixConnection(self._folder)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket in a folder whose path may be longer than a socket's path may be."""

    def __init__(self, folder: Path) -> None:
        super().__init__("gateway", timeout=_TIMEOUT_SECONDS)
        self._folder = folder

    def connect(self) -> None:
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock: Any = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_TIMEOUT_SECONDS)
            self.sock.connect(f"/proc/self/fd/{folder}/{ADMIN_SOCKET}")
        finally:
            os.close(folder)
