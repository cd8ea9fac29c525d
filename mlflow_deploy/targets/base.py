"""The Target interface and its capabilities; the records are in base_records."""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import DeploymentNotFound, Unsupported
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.targets.base_records import DeploymentRecord, Orphan, RevisionRecord, RevisionStatus


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
