"""The Target interface, its capabilities, and the records that every target keeps."""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import DeploymentNotFound, Unsupported
from mlflow_deploy.gateway.stats import CallStats


class Capability(enum.Enum):
    """What a target may be able to do; callers ask before they act."""

    TRAFFIC_SPLIT = "traffic-split"
    """Several revisions can share the traffic by weights; `can_split` asks for one deployment."""

    DURABLE = "durable"
    """Deployments outlive the process that made them."""

    RESTARTS = "restarts"
    """A revision whose process dies is started again without a command."""

    MONITORS = "monitors"
    """Monitors are attached to revisions, and `ask_monitor` reaches them."""

    RECORDING = "recording"
    """Replicas record requests with their answers on demand, for `ask`."""


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
        label: its name among the deployments of an endpoint; empty when it goes by its number.
        tracking_uri: MLflow server that its monitors report to, empty for that of the environment.
        registry_uri: server of the registered models, likewise.
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
    label: str = ""
    tracking_uri: str = ""
    registry_uri: str = ""

    @property
    def settings(self) -> DeploymentSpec:
        """The deployment's settings, read from `spec`; what an earlier version did not write is the default."""
        return DeploymentSpec.model_validate(self.spec)


class RolloutEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one step of a rollout.

    Attributes:
        at: UTC time, ISO 8601.
        share: percent of the requests that the candidate had.
        copies: percent of the requests that it got copies of.
        decision: passed, undecided, failed or rolled back.
        reason: the numbers behind it.
    """

    at: str
    share: int
    decision: str
    reason: str
    copies: int = 0


class TrafficPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Who got the requests from a moment on.

    Attributes:
        at: UTC time, ISO 8601.
        weights: revision number -> share in percent; empty when nothing served.
        copies: revision number -> percent of the requests that it got copies of.
        reason: why, and the numbers behind it; empty while that is not known yet.
    """

    at: str
    weights: dict[int, int]
    copies: dict[int, int] = {}
    reason: str = ""


class DifferentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that two revisions answered differently.

    Attributes:
        request_id: of the request that it came in.
        row: position in that request, from 0.
        inputs: the row as it was sent, shortened.
        stable: the stable revision's answer, shortened.
        candidate: the candidate's answer, shortened.
        distance: how many times the tolerance numbers lie apart; infinite for different labels, as JSON null.
    """

    request_id: str
    row: int
    inputs: str
    stable: str
    candidate: str
    distance: float | None


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a shadow's answers compared with the stable revision's, on the same requests.

    Attributes:
        requests: requests whose two answers were compared.
        rows: rows in them.
        different: rows that were answered differently.
        disagreement: mean share of different rows in a request, which the analysis judges.
        unmatched: recorded answers whose other side was not recorded.
        lost: records that were overwritten before they were read.
        oversized: answers too large to be recorded.
        unreadable: pairs whose answers could not be taken apart into rows.
        busy: copies that the candidate had no room for.
        stable_p50_ms, stable_p95_ms: latency of the stable revision, None before its first answer.
        candidate_p50_ms, candidate_p95_ms: latency of the copies.
        worst: the rows that lie furthest apart, at most five.
    """

    requests: int = 0
    rows: int = 0
    different: int = 0
    disagreement: float = 0.0
    unmatched: int = 0
    lost: int = 0
    oversized: int = 0
    unreadable: int = 0
    busy: int = 0
    stable_p50_ms: float | None = None
    stable_p95_ms: float | None = None
    candidate_p50_ms: float | None = None
    candidate_p95_ms: float | None = None
    worst: tuple[DifferentRow, ...] = ()


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout that goes on, or how it ended.

    Attributes:
        outcome: `promoted` or `rolled back`; empty while it goes on.
        traffic: the shares that it gave, each written in the same step as the state that it led to.
        shadow: the comparison of answers of strategy `shadow`.
    """

    strategy: str
    stable: int
    candidate: int
    started_at: str
    outcome: str = ""
    events: tuple[RolloutEvent, ...] = ()
    traffic: tuple[TrafficPoint, ...] = ()
    shadow: ShadowReport | None = None


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a deployment, written in the same step as the state that it led to.

    Attributes:
        number: counts from 1 within the deployment.
        at: UTC time, ISO 8601.
        by: who ran the command: MLFLOW_TRACKING_USERNAME, or the user of the operating system.
        action: what was done.
        outcome: `started` when a candidate is brought up, then `done` or `rolled_back`; `failed` for an action
            of a monitor that could not be done.
        revision: the revision it is about, 0 for several.
        model: the fixed model version of that revision.
        before: shares of the traffic in percent before it.
        after: shares after it.
        reason: why, and the numbers behind it; an empty string when a person simply asked for it.
    """

    number: int
    at: str
    by: str
    action: Literal[
        "create", "update", "add", "traffic", "rollback", "delete-revision",
        "notify", "pause-rollout", "retrain",
    ]  # fmt: skip
    outcome: Literal["started", "done", "rolled_back", "failed"]
    revision: int = 0
    model: str = ""
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    reason: str = ""


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as its target remembers it.

    Attributes:
        phase: `creating` until the first revision is ready, then `ready`; `deleting` while it is removed.
            A record in another phase than `ready` whose lock is free was left by a killed command.
        host: address the deployment listens on.
        port: its port.
        gateway: what stands in front of the revisions: `envoy` or `none`.
        gateway_note: why there is none although the settings left it to the target, or an empty string.
        revisions: every revision that still exists, oldest first.
        weights: revision number -> share of the traffic in percent; adds up to 100 in phase `ready`.
        mirror: revision number -> percent of the requests that it gets copies of; its answers to them are
            thrown away.
        replicas: revision number -> replicas that it has for now, where a rollout deviates from its settings.
        candidate: revision that a rollout is bringing up, 0 when there is none.
        rollout: the rollout that goes on; its stable revision and its candidate run with or without traffic.
        last_rollout: the rollout that ended last.
        previous: revisions that were stable before, the latest last; a rollback goes back along them.
        history: the latest changes, the newest last.
        created_at: UTC time, ISO 8601.
        updated_at: UTC time, ISO 8601.
    """

    name: str
    phase: Literal["creating", "ready", "deleting"]
    host: str
    port: int
    gateway: str = "none"
    gateway_note: str = ""
    revisions: tuple[RevisionRecord, ...]
    weights: dict[int, int]
    mirror: dict[int, int] = {}
    replicas: dict[int, int] = {}
    candidate: int = 0
    rollout: RolloutRecord | None = None
    last_rollout: RolloutRecord | None = None
    previous: tuple[int, ...] = ()
    history: tuple[ChangeRecord, ...] = ()
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
        """Revisions that shall run: those with traffic or copies of it, and both sides of a rollout."""
        sides = {self.rollout.stable, self.rollout.candidate} if self.rollout else set()
        sides |= {number for number, percent in self.mirror.items() if percent}
        return sorted({number for number, weight in self.weights.items() if weight} | sides)

    @property
    def kept(self) -> list[int]:
        """Former stable revisions that go on running without traffic where they still run."""
        if self.gateway == "none" or not self.weights:
            return []
        known = {revision.number for revision in self.revisions}
        former = [number for number in self.previous if number in known and number not in self.wanted]
        return sorted(former[max(0, len(former) - self.stable.settings.keep_revisions) :])

    def replica_count(self, number: int) -> int:
        """How many replicas a revision shall have now."""
        return self.replicas.get(number) or self.revision(number).settings.replicas

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


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a killed command left behind and that no deployment needs.

    Attributes:
        target: where it is.
        kind: container, network, volume, process, folder, bundle or image.
        name: its own name, by which it is removed.
        deployment: the deployment that it belonged to; empty when it served several.
        why: why nothing needs it.
        bytes: what its removal frees; 0 when that is not known.
    """

    target: str
    kind: str
    name: str
    deployment: str = ""
    why: str = ""
    bytes: int = 0


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

        Does nothing when there is no such deployment. The bundles and the archive stay.
        """

    @abstractmethod
    def read_archive(self, name: str, *keys: str) -> dict[str, bytes]:
        """Documents in the archive of a name, by key; all of them without `keys`, never one that is missing.

        The archive outlives the deployment, and goes on when one of the same name is made again.
        """

    @abstractmethod
    def write_archive(self, name: str, key: str, document: bytes) -> None:
        """Keep a document in the archive of a name, in one step; the earlier one of this key is replaced.

        Args:
            key: lower-case letters, digits and '-'.
            document: UTF-8 text.

        Raises:
            StateWriteFailed: it cannot be written; the earlier document is unchanged.
        """

    @abstractmethod
    def archive_names(self) -> list[str]:
        """Names that have an archive, sorted; most of them are or were deployments."""

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

    def forget(self, name: str, number: int) -> None:
        """Stop a revision and remove everything that belongs to it alone; the bundle stays."""
        self.stop(name, number)

    def orphan_names(self) -> list[str]:
        """Names of everything under which `orphans` may find something, sorted."""
        return self.names()

    def orphans(self, name: str) -> list[Orphan]:
        """What is on the target under a name and belongs to no deployment; called while its lock is held."""
        return []

    def remove_orphan(self, orphan: Orphan) -> None:
        """Remove what `orphans` found while the lock of its deployment is held; gone already is no error."""
        raise Unsupported(self.name, f"removing a {orphan.kind}")

    def bundles_in_use(self) -> set[str]:
        """Digests of all bundles that a deployment refers to, of other namespaces of the target too."""
        records = [self.read_record(name) for name in self.names()]
        return {each.bundle for record in records if record for each in record.revisions}

    def image_of(self, revision: RevisionRecord, bundle: Bundle) -> dict[str, str]:
        """The image that a revision would run from: `name` and `action` (reuse or build); empty without images.

        Changes nothing on the target.
        """
        return {}

    def scrape_addresses(self, record: DeploymentRecord) -> dict[int, tuple[str, ...]]:
        """Revision -> HOST:PORT of the scoring server of each replica that shall run, for Prometheus."""
        return {}

    @abstractmethod
    def status(self, record: DeploymentRecord, number: int) -> RevisionStatus:
        """What a revision does now."""

    @abstractmethod
    def apply(self, record: DeploymentRecord, bundles: Mapping[int, Bundle]) -> None:
        """Make what runs match the record: its wanted revisions run, all others are drained and stopped.

        Those that the record keeps are left running without traffic. Idempotent; it is how traffic moves and
        how a target comes back after a kill or a restart. The record is the decision: it has been written
        before. Nothing is stopped before what was started instead is ready.

        Args:
            bundles: the bundle of each wanted revision, and of those kept ones whose dead replicas shall be
                started again.

        Raises:
            Unsupported: several revisions have a weight, or one gets copies, and no gateway stands in front.
        """

    @abstractmethod
    def logs(self, name: str, number: int, *, follow: bool) -> Iterator[str]:
        """Lines of a revision's log, oldest first; with `follow`, goes on as they are written."""

    @abstractmethod
    def stats(self, record: DeploymentRecord) -> dict[int, CallStats]:
        """What each revision was asked, copies included, counted since the gateway was started.

        Empty where nothing counts, as without a gateway.
        """

    def ask(self, record: DeploymentRecord, number: int, path: str, order: bytes) -> dict[str, bytes]:
        """POST an order to an administrative address of each replica of a revision.

        Returns:
            Name of the replica -> body of its answer; replicas that do not answer with 200 are left out.
        """
        return {}

    def add_labels(self, record: DeploymentRecord, content: bytes) -> None:
        """Keep a Parquet file with labels in the deployment's data folder.

        Raises:
            Unsupported: the target has no data folders.
            DeployError: it cannot be written.
        """
        raise Unsupported(self.name, "labels")

    def ask_monitor(self, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        """Run a command of the deployment's monitor job, beside its data; returns the JSON that it printed.

        Args:
            arguments: of `mlflow_deploy.monitoring.job`, without the data folder.

        Raises:
            Unsupported: the target has no monitors.
            MonitorFailed: the command failed.
        """
        raise Unsupported(self.name, "monitors")

    def monitor_state(self, record: DeploymentRecord) -> str:
        """How the monitor job is: `running`, `off` when no monitor is attached, or why it does not run."""
        return "off"

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

    def lacks_gateway(self) -> str:
        """Why no gateway can stand in front of a new deployment here; an empty string when one can."""
        return ""

    def can_split(self, record: DeploymentRecord) -> bool:
        """Whether several revisions of this deployment can share its traffic."""
        return Capability.TRAFFIC_SPLIT in self.capabilities and record.gateway != "none"

    def check_split(self, record: DeploymentRecord, weights: Mapping[int, int]) -> None:
        """Refuse shares that the deployment cannot make.

        Raises:
            Unsupported: several revisions have a weight, or one gets copies, and no gateway stands in front.
        """
        several = sum(weight > 0 for weight in weights.values()) > 1 or any(record.mirror.values())
        if several and not self.can_split(record):
            raise Unsupported(
                self.name,
                "sharing traffic between revisions of a deployment without gateway",
                "Create the deployment with -C gateway=envoy, or give one revision 100 %",
            )

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
