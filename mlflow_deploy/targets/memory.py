"""Target `memory`: revisions that exist in this process only, for tests of what is written over targets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeploymentBusy, PortInUse, StartFailed
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.serving.recorder import Record, Reply
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord, RevisionStatus

_FIRST_PORT = 8500


class MemoryTarget(Target):
    """Keeps the rules of the Target interface without processes; no request is ever answered.

    Attributes:
        broken: digests of bundles whose revisions never become ready.
        answered: gives the statistics of a deployment, for tests of rollouts.
        recorded: gives what a revision has answered since it was last asked.
        replicas: (deployment, revision) -> how many replicas run.
    """

    name = "memory"
    capabilities: frozenset[Capability] = frozenset({Capability.TRAFFIC_SPLIT, Capability.RECORDING})

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.answered: Callable[[DeploymentRecord], dict[int, CallStats]] | None = None
        self.recorded: Callable[[DeploymentRecord, int], list[Record]] | None = None
        self.replicas: dict[tuple[str, int], int] = {}
        self._controls: dict[str, str] = {}
        self._records: dict[str, DeploymentRecord] = {}
        self._ports: dict[str, int] = {}
        self._running: dict[tuple[str, int], float] = {}
        self._logs: dict[tuple[str, int], list[str]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._archive: dict[str, dict[str, bytes]] = {}

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        lock = self._locks.setdefault(name, threading.Lock())
        if not lock.acquire(blocking=False):
            raise DeploymentBusy(name, "this process")
        try:
            yield
        finally:
            lock.release()

    def names(self) -> list[str]:
        return sorted(self._records.keys() | self._ports.keys())

    def read_record(self, name: str) -> DeploymentRecord | None:
        return self._records.get(name)

    def write_record(self, record: DeploymentRecord) -> None:
        self._records[record.name] = record

    def remove(self, name: str) -> None:
        self._records.pop(name, None)
        self._ports.pop(name, None)
        for key in [key for key in self._running if key[0] == name]:
            del self._running[key], self.replicas[key]

    def read_archive(self, name: str, *keys: str) -> dict[str, bytes]:
        found = self._archive.get(name, {})
        return {key: document for key, document in found.items() if not keys or key in keys}

    def write_archive(self, name: str, key: str, document: bytes) -> None:
        self._archive.setdefault(name, {})[key] = document

    def archive_names(self) -> list[str]:
        return sorted(self._archive)

    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        taken = {other for owner, other in self._ports.items() if owner != name}
        if port is None:
            port = next(number for number in range(_FIRST_PORT, 65536) if number not in taken)
        if port in taken:
            raise PortInUse(host, port)
        self._ports[name] = port
        return port

    def start(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> RevisionStatus:
        key = (record.name, revision.number)
        log = self._logs.setdefault(key, [])
        if bundle.digest in self.broken:
            log.append("the bundle is broken")
            raise StartFailed(record.name, revision.number, "its bundle is broken", log[-1])
        if self.replicas.get(key, 0) < record.replica_count(revision.number):
            self._running[key] = time.time()
        self.replicas[key] = record.replica_count(revision.number)
        log.append("ready")
        return self.status(record, revision.number)

    def stop(self, name: str, number: int) -> None:
        self.replicas.pop((name, number), None)
        if self._running.pop((name, number), None) is not None:
            self._logs[name, number].append("stopped")

    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        since = self._running.get((record.name, number))
        if since is None:
            return RevisionStatus(number=number, state="stopped")
        return RevisionStatus(number=number, state="ready", since=since)

    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        wanted = record.wanted
        self.check_split(record, record.weights)
        lacking = {
            number: record.replica_count(number) - self.replicas.get((record.name, number), 0)
            for number in wanted
        }
        # What comes is there before what goes has gone.
        for number in sorted(wanted, key=lambda number: -lacking[number]):
            if lacking[number]:
                self.start(record, record.revision(number), bundles[number])
        for name, number in list(self._running):
            if name == record.name and number not in (*wanted, *record.kept):
                self.stop(name, number)

    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        return self.answered(record) if self.answered else {}

    def ask(self, record: DeploymentRecord, number: int, path: str, order: bytes) -> dict[str, bytes]:
        if self.recorded is None or (record.name, number) not in self._running:
            return {}
        reply = Reply(boot=f"r{number}", after=[], records=self.recorded(record, number), lost=0, oversized=0)
        return {f"r{number}-1": msgspec.msgpack.encode(reply)}

    def control(self, name: str) -> str:
        return self._controls.get(name, "")

    def set_control(self, name: str, word: str) -> None:
        self._controls[name] = word

    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        yield from self._logs.get((name, number), [])
