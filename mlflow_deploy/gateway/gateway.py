"""The gateway of one deployment: its folder, its process's command line, changes while it runs, statistics.

Everything is in the folder, so an Envoy that was killed comes back with the same routing, and another process
can go on where this one was killed::

    spec.json                        what was asked (GatewaySpec)
    bootstrap.json                   what Envoy is started with
    cds.json, lds.json, rds.json     clusters, listener and routes; Envoy watches them
    admin.sock                       Envoy's administration
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import write_atomic
from mlflow_deploy.gateway import binary, documents
from mlflow_deploy.gateway.admin import Admin, Taken
from mlflow_deploy.gateway.documents import BOOTSTRAP, CDS, LDS, RDS
from mlflow_deploy.gateway.errors import GatewayRejected, GatewayUnavailable
from mlflow_deploy.gateway.spec import Backend, GatewaySpec, Traffic, check
from mlflow_deploy.gateway.stats import RevisionStats, read_stats

_SPEC = "spec.json"
_POLL_SECONDS = 0.02
_KINDS = {CDS: "revisions", LDS: "listener", RDS: "routes"}


class Gateway:
    """The gateway in a folder that `prepare` has made."""

    def __init__(self, folder: Path) -> None:
        """Open the gateway of a folder.

        Raises:
            GatewayUnavailable: the folder has none.
        """
        self.folder = folder
        try:
            self.spec = msgspec.json.decode((folder / _SPEC).read_bytes(), type=GatewaySpec)
        except (OSError, msgspec.DecodeError) as error:
            raise GatewayUnavailable(folder, f"{_SPEC} cannot be read: {error}") from error
        self._admin = Admin(folder, self.spec)

    @classmethod
    def prepare(
        cls, folder: Path, spec: GatewaySpec, backends: Sequence[Backend], traffic: Traffic
    ) -> Gateway:
        """Write everything that the process of `command` needs; idempotent.

        When the process runs, it takes a new `spec` for the connections of clients from then on, but for
        `threads`, `max_connections` and the administration's address, which take a restart. Revisions and
        traffic of a running gateway are changed by `apply`, which knows the order that loses no request.

        Raises:
            MissingExtra: Envoy is not installed.
            ConfigError: the traffic names a revision that is not among the backends.
            StateWriteFailed: the folder cannot be written.
        """
        binary.envoy_binary()
        check(backends, traffic)
        files = {
            BOOTSTRAP: documents.encode(documents.bootstrap(spec)),
            CDS: documents.encode(documents.cluster_document(spec, backends, traffic)),
            RDS: documents.encode(documents.route_document(spec, backends, traffic)),
            LDS: documents.encode(documents.listener_document(spec)),
            _SPEC: _encode(spec),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateWriteFailed(folder, error.strerror or str(error)) from error
        for name, content in files.items():
            _write(folder / name, content)
        return cls(folder)

    def command(self) -> list[str]:
        """Arguments of the process for a supervisor. It stays in the foreground and dies with its parent."""
        return [
            *(sys.executable, "-m", "mlflow_deploy.gateway.run", str(self.folder)),
            *binary.arguments(self.spec.threads),
        ]

    def ready(self) -> bool:
        """Whether Envoy serves."""
        try:
            return self._admin.live() and all(taken.version for taken in self._admin.taken().values())
        except GatewayUnavailable:
            return False

    def wait_ready(self, seconds: float = 10.0) -> None:
        """Wait until the process that was started from `command` serves by the files of the folder.

        Raises:
            GatewayRejected: Envoy refuses a file, or the port is taken; with its words.
            GatewayUnavailable: it is not ready in time.
        """
        deadline = time.monotonic() + seconds
        why = "its process does not run"
        while True:
            try:
                live, taken = self._admin.live(), self._admin.taken()
                behind = self._behind(taken)
                if live and not behind:
                    return
                why = "it is still waiting for " + ", ".join(_KINDS[name] for name in behind)
                for name in behind:
                    if taken[name].refused:
                        raise GatewayRejected(_KINDS[name], self._words(name))
            except GatewayUnavailable as error:
                why = error.why
            if time.monotonic() > deadline:
                raise GatewayUnavailable(self.folder, f"it was not ready within {seconds:g} s: {why}")
            time.sleep(_POLL_SECONDS)

    def apply(
        self,
        backends: Sequence[Backend],
        traffic: Traffic,
        *,
        spec: GatewaySpec | None = None,
        wait: float = 10.0,
        drain: float = 30.0,
    ) -> None:
        """Change revisions and traffic of the running gateway; no request is lost.

        New revisions are made known and health-checked before a route names them; a revision that is left out
        is forgotten when its last request is answered. So when this returns, what was left out can be stopped.

        Args:
            backends: all revisions that shall be reachable from now on.
            traffic: their shares.
            spec: what it runs by from now on; None = as before. `threads`, `max_connections` and the
                administration's address take a restart.
            wait: seconds that Envoy may take for each step.
            drain: seconds that requests in flight to revisions that were left out may take; after that they
                are still finished unless the revision is stopped.

        Raises:
            ConfigError: the traffic names a revision that is not among the backends.
            GatewayRejected: Envoy refuses it; the message has its words. The earlier configuration holds.
            GatewayUnavailable: Envoy does not run or does not answer in time. The earlier configuration holds.
            StateWriteFailed: the folder cannot be written.
        """
        check(backends, traffic)
        spec = spec or self.spec
        before = {name: self._read(name) for name in (CDS, RDS, LDS)}
        clusters = documents.cluster_document(spec, backends, traffic)
        old_clusters = self._document(CDS)
        try:
            self._publish(CDS, documents.with_clusters_of(clusters, old_clusters), wait)
            self._publish(RDS, documents.route_document(spec, backends, traffic), wait)
            self._publish(LDS, documents.listener_document(spec), wait)
        except BaseException:
            for name in (LDS, RDS, CDS):
                _write(self.folder / name, before[name])
            raise
        if spec != self.spec:
            _write(self.folder / BOOTSTRAP, documents.encode(documents.bootstrap(spec)))
            _write(self.folder / _SPEC, _encode(spec))
            self.spec = spec
        kept = {cluster["name"] for cluster in clusters["resources"]}
        removed = [cluster["name"] for cluster in old_clusters["resources"] if cluster["name"] not in kept]
        if removed:
            self._wait_idle(removed, drain)
            self._publish(CDS, clusters, wait)

    def stats(self) -> dict[int, RevisionStats]:
        """What each revision has been sent since the gateway was started, by its number.

        Raises:
            GatewayUnavailable: Envoy does not answer.
        """
        return read_stats(self._admin)

    def drain(self, seconds: float = 10.0) -> bool:
        """Take no new connections and wait until the requests in flight are answered; then it can be stopped.

        Returns:
            Whether all were answered in time.

        Raises:
            GatewayUnavailable: Envoy does not answer.
        """
        # Answers say `Connection: close` from now on, so that clients leave.
        self._admin.post("/healthcheck/fail")
        self._admin.post("/drain_listeners")
        deadline = time.monotonic() + seconds
        name = "http.public.downstream_rq_active"
        while int(self._admin.numbers(f"^{name}$").get(name, "0")):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    # --- details ---

    def _behind(self, taken: Mapping[str, Taken]) -> list[str]:
        """Files whose content Envoy does not work by."""
        return [
            name
            for name, one in taken.items()
            if one.preparing or one.version != self._document(name)["version_info"]
        ]

    def _publish(self, name: str, document: Mapping[str, Any], wait: float) -> None:
        """Replace a discovery file and return when Envoy works by it."""
        refused = self._admin.taken()[name].refused
        content = documents.encode(dict(document))
        if content != self._read(name):
            _write(self.folder / name, content)
        deadline = time.monotonic() + wait
        why = ""
        while True:
            try:
                now = self._admin.taken()[name]
                if now.version == document["version_info"] and not now.preparing:
                    return
                if now.refused not in (0, refused):
                    raise GatewayRejected(_KINDS[name], self._words(name))
            except GatewayUnavailable as error:
                why = f": {error.why}"
            if time.monotonic() > deadline:
                raise GatewayUnavailable(
                    self.folder, f"it did not take the new {_KINDS[name]} within {wait:g} s{why}"
                )
            time.sleep(_POLL_SECONDS)

    def _wait_idle(self, clusters: Sequence[str], seconds: float) -> None:
        """Wait until no request is in flight in any of the clusters, seen twice, or the time is over."""
        pattern = rf"^cluster\.({'|'.join(clusters)})\.upstream_rq_active$"
        deadline = time.monotonic() + seconds
        # A worker takes new routes a moment after Envoy says that it has them.
        idle = 0
        while idle < 2 and time.monotonic() < deadline:
            active = any(int(value) for value in self._admin.numbers(pattern).values())
            idle = 0 if active else idle + 1
            time.sleep(_POLL_SECONDS)

    def _words(self, name: str) -> str:
        """Envoy's own words on why it refuses a file."""
        if name == LDS and (text := self._admin.listener_error()):
            return text
        cds, lds, rds = (self._document(file) for file in (CDS, LDS, RDS))
        text = binary.why_invalid(documents.static_bootstrap(cds, lds, rds), self.folder)
        return text or "it did not say why; its log does"

    def _document(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._read(name)))
        except ValueError as error:
            raise GatewayUnavailable(self.folder, f"{name} is damaged: {error}") from error

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise GatewayUnavailable(self.folder, f"{name} cannot be read: {error.strerror}") from error


def _encode(spec: GatewaySpec) -> bytes:
    return msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise StateWriteFailed(path, error.strerror or str(error)) from error
