"""What a target tells the monitor job of a deployment; light, since the job waits most of its life."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord

FOLDER = "monitor"
"""Folder of the monitors in a deployment's data folder."""
ORDER = "order.json"
PROFILE = "profile.json"
INCOMING = ".order.json"
"""A new order in the folder of the monitors, where the target cannot write as the job does."""
HOST_OF_CONTAINER = "host.docker.internal"
"""Name by which a container reaches the machine of its engine."""
JOB = "mlflow_deploy.monitoring.job"
"""The module that runs the monitors; targets start it by its name."""


class MonitoredRevision(msgspec.Struct, frozen=True, kw_only=True):
    """A revision with monitors.

    Attributes:
        number: of the revision.
        since: when it was made, UTC, ISO 8601.
        active: it runs now; of others only the rows that are there are judged.
        model_name: registered model, or an empty string.
        model_version: its version, or an empty string.
        bundle: digest of the bundle.
        windows: kind of monitor -> its window, such as `1h` or `5000rows`.
        graces: kind of monitor -> seconds that a window waits after its end.
        tracking_uri: MLflow server that gets the results; empty = that of the environment.
        registry_uri: server of the registered models; empty = the same.
        settings: the deployment's settings, as `DeploymentSpec.model_dump(mode="json")`.
    """

    number: int
    since: str
    active: bool
    model_name: str = ""
    model_version: str = ""
    bundle: str = ""
    windows: dict[str, str]
    graces: dict[str, float]
    tracking_uri: str = ""
    registry_uri: str = ""
    settings: dict[str, Any]


class MonitorOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the job of a deployment shall do.

    Attributes:
        deployment: its name.
        created_at: when it was made; keeps it apart from an earlier one of this name.
        target: where it runs.
        revisions: those with monitors, oldest first.
        metrics_host: address on which the job serves its Prometheus metrics.
        metrics_port: its port, 0 for a free one.
    """

    deployment: str
    created_at: str
    target: str
    revisions: tuple[MonitoredRevision, ...]
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0


def order_of(record: DeploymentRecord, target: str) -> MonitorOrder | None:
    """The order for a deployment, None when no running revision has a monitor."""
    running = {*record.wanted, *record.kept}
    revisions = tuple(
        _monitored(revision, active=revision.number in running)
        for revision in record.revisions
        if revision.number != record.candidate or revision.number in running
    )
    revisions = tuple(revision for revision in revisions if revision.windows)
    if not any(revision.active for revision in revisions):
        return None
    newest = record.revision(revisions[-1].number).settings.monitor
    return MonitorOrder(
        deployment=record.name,
        created_at=record.created_at,
        target=target,
        revisions=revisions,
        metrics_host=newest.metrics_host,
        metrics_port=newest.metrics_port or 0,
    )


def order_path(data: Path) -> Path:
    """Where the order is in a data folder."""
    return data / FOLDER / ORDER


def profile_path(data: Path, revision: int) -> Path:
    """Where the reference profile of a revision's bundle is in a data folder."""
    return data / FOLDER / f"rev-{revision}" / PROFILE


def incoming_profile(revision: int) -> str:
    """Name of a reference profile that comes with a new order."""
    return f".profile-{revision}.json"


def _monitored(revision: RevisionRecord, *, active: bool) -> MonitoredRevision:
    spec = revision.settings.monitor
    return MonitoredRevision(
        number=revision.number,
        since=revision.created_at,
        active=active,
        model_name=revision.model_name,
        model_version=revision.model_version,
        bundle=revision.bundle,
        windows={kind: spec.window_of(kind) for kind in spec.kinds},
        graces={kind: spec.grace_of(kind) for kind in spec.kinds},
        tracking_uri=spec.tracking_uri or revision.tracking_uri,
        registry_uri=spec.tracking_uri or revision.registry_uri,
        settings=revision.spec,
    )
