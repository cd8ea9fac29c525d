"""The Target interface, its capabilities, and the records that every target keeps."""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeploymentNotFound
from mlflow_deploy.gateway.stats import CallStats


class Capability(enum.Enum):
    """What a target may be able to do; callers ask before they act."""

    TRAFFIC_SPLIT = "traffic-split"
    """Several revisions can share the traffic by weights; `can_split` asks for one deployment."""

    DURABLE = "durable"
    """Deployments outlive the process that made them."""

    RESTARTS = "restarts"
    """A revision whose process dies is started again without a command."""


RevisionState = Literal["starting", "ready", "unavailable", "failed", "stopped"]
"""starting: not yet ready for the first time; unavailable: was started, does not answer now;
failed: gave up for good; stopped: not running on purpose."""


class RevisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle that runs behind a deployment; never changed once made.

    Attributes:
        number: counts from 1 within the deployment.
        bundle: digest of the bundle.
        format: the servable's form.
        model_uri: the URI the user gave.
        resolved_uri: the fixed version that URI meant at the time.
        model_name: registered model, or an empty string.
        model_version: its version, or an empty string.
        fallback: why the form is pyfunc although a faster one was wanted.
        parity: one line on the parity check.
        notes: what the user should know about the conversion.
        spec: the deployment's settings, as `DeploymentSpec.model_dump(mode="json")`.
        created_at: UTC time, ISO 8601.
    """

    number: int
    bundle: str
    format: str
    model_uri: str
    resolved_uri: str
    model_name: str
    model_version: str
    fallback: str
    parity: str
    notes: tuple[str, ...] = ()
    spec: dict[str, Any]
    created_at: str


class RolloutEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one step of a rollout.

    Attributes:
        at: UTC time, ISO 8601.
        share: percent of the requests that the candidate had.
        decision: passed, undecided, failed or rolled back.
        reason: the numbers behind it.
    """

    at: str
    share: int
    decision: str
    reason: str


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout that goes on, or how it ended.

    Attributes:
        outcome: `promoted` or `rolled back`; empty while it goes on.
    """

    strategy: str
    stable: int
    candidate: int
    started_at: str
    outcome: str = ""
    events: tuple[RolloutEvent, ...] = ()


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as its target remembers it.

    Attributes:
        phase: `creating` until the first revision is ready, then `ready`; `deleting` while it is removed.
            A record in another phase than `ready` whose lock is free was left by a killed command.
        host: address the deployment listens on.
        port: its port.
        gateway: what stands in front of the revisions: `envoy` or `none`.
        revisions: every revision that still exists, oldest first.
        weights: revision number -> share of the traffic in percent; adds up to 100 in phase `ready`.
        candidate: revision that a rollout is bringing up, 0 when there is none.
        rollout: the rollout that goes on; its stable revision and its candidate run with or without traffic.
        last_rollout: the rollout that ended last.
        previous: revisions that were stable before, the latest last; a rollback goes back along them.
        created_at: UTC time, ISO 8601.
        updated_at: UTC time, ISO 8601.
    """

    name: str
    phase: Literal["creating", "ready", "deleting"]
    host: str
    port: int
    gateway: str = "none"
    revisions: tuple[RevisionRecord, ...]
    weights: dict[int, int]
    candidate: int = 0
    rollout: RolloutRecord | None = None
    last_rollout: RolloutRecord | None = None
    previous: tuple[int, ...] = ()
    created_at: str
    updated_at: str

    @property
    def stable(self) -> RevisionRecord:
        """The revision with most of the traffic; the newest one before there is any."""
        if not self.weights:
            return self.revisions[-1]
        return self.revision(max(self.weights, key=lambda number: (self.weights[number], number)))

    @property
    def wanted(self) -> list[int]:
        """Revisions that shall run: those with traffic, and both sides of a rollout."""
        sides = {self.rollout.stable, self.rollout.candidate} if self.rollout else set()
        return sorted({number for number, weight in self.weights.items() if weight} | sides)

    def revision(self, number: int) -> RevisionRecord:
        """The revision with this number.

        Raises:
            KeyError: there is none.
        """
        for revision in self.revisions:
            if revision.number == number:
                return revision
        raise KeyError(number)


class RevisionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision does now.

    Attributes:
        pid: process that serves it, 0 when there is none or the target has no processes.
        since: when that process was started, in seconds since the epoch; 0 when not known.
        detail: why it is not ready, or an empty string.
    """

    number: int
    state: RevisionState
    pid: int = 0
    since: float = 0.0
    detail: str = ""


class Target(ABC):
    """A place where revisions run behind a stable address.

    A target knows nothing of strategies, models or MLflow: it starts and stops revisions, moves traffic and
    keeps the record. Every method may be called again after a kill. Calls that change a deployment are made
    while its `lock` is held.
    """

    name: str
    capabilities: frozenset[Capability]

    @abstractmethod
    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold the deployment `name` against other commands.

        Raises:
            DeploymentBusy: another command holds it.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Names of everything that has a place on the target, sorted; also what a killed command left."""

    @abstractmethod
    def read_record(self, name: str) -> DeploymentRecord | None:
        """The record of a deployment in whatever phase, or None when there is none."""

    @abstractmethod
    def write_record(self, record: DeploymentRecord) -> None:
        """Replace the record in one step.

        Raises:
            StateWriteFailed: it cannot be written; the old record is unchanged.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Stop all revisions and remove the record and everything that belongs to the deployment.

        Does nothing when there is no such deployment. The bundles stay.
        """

    @abstractmethod
    def reserve_address(self, name: str, host: str, port: int | None) -> int:
        """The port for a new deployment: `port` when it is free, a free one when `port` is None.

        Raises:
            PortInUse: the wanted port is taken.
        """

    @abstractmethod
    def start(self, record: DeploymentRecord, revision: RevisionRecord, bundle: Bundle) -> RevisionStatus:
        """Start a revision beside the others and return when it is ready.

        Raises:
            StartFailed: it died, refused its bundle, or was not ready in time. It has been stopped.
        """

    @abstractmethod
    def stop(self, name: str, number: int) -> None:
        """Drain and stop a revision; does nothing when it does not run."""

    @abstractmethod
    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        """What a revision does now."""

    @abstractmethod
    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        """Make what runs match the record: its wanted revisions run, all others are drained and stopped.

        Idempotent; it is how traffic moves and how a target comes back after a kill or a restart. The record
        is the decision: it has been written before.

        Args:
            bundles: the bundle of each wanted revision.

        Raises:
            Unsupported: several revisions have a weight, and the deployment cannot split its traffic.
        """

    @abstractmethod
    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        """Lines of a revision's log, oldest first; with `follow`, goes on as they are written."""

    @abstractmethod
    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        """What clients asked of each revision, counted since the gateway was started.

        Empty where nothing counts, as without a gateway.
        """

    @abstractmethod
    def control(self, name: str) -> str:
        """The word that another command said to the rollout that goes on; an empty string when none did."""

    @abstractmethod
    def set_control(self, name: str, word: str) -> None:
        """Say a word to the rollout that goes on: pause, resume, promote or abort; empty takes it back."""

    def url(self, record: DeploymentRecord) -> str:
        """Base URL under which clients reach the deployment."""
        host = "127.0.0.1" if record.host in ("0.0.0.0", "::") else record.host  # noqa: S104
        tls = bool(record.stable.spec.get("serving", {}).get("tls_cert"))
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{record.port}"

    def grpc_address(self, record: DeploymentRecord) -> str:
        """HOST:PORT for gRPC clients, an empty string when the deployment does not speak gRPC."""
        return ""

    def can_split(self, record: DeploymentRecord) -> bool:
        """Whether several revisions of this deployment can share its traffic."""
        return Capability.TRAFFIC_SPLIT in self.capabilities

    def require(self, name: str) -> DeploymentRecord:
        """The record of a finished deployment.

        Raises:
            DeploymentNotFound: there is none, or a killed command left it unfinished.
        """
        record = self.read_record(name)
        if record is None or record.phase != "ready":
            raise DeploymentNotFound(name, self.name, [known.name for known in self.records()])
        return record

    def records(self) -> list[DeploymentRecord]:
        """The records of all finished deployments, by name."""
        found = (self.read_record(name) for name in self.names())
        return [record for record in found if record is not None and record.phase == "ready"]
