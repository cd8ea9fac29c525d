"""What the replicas of a revision are together: what they need, one status, one wait until they are ready."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlflow_deploy.config import DeploymentSpec, EnvoySpec
from mlflow_deploy.errors import ConfigError, StartFailed
from mlflow_deploy.settings import CaptureSettings
from mlflow_deploy.targets.base_records import RevisionState, RevisionStatus


@dataclass(frozen=True)
class ReplicaStatus:
    """What one replica does now.

    Attributes:
        ready: it accepts requests.
        failed: it gave up for good.
        pid: its process.
        since: when that was started, in seconds since the epoch.
        detail: why it is not ready.
    """

    ready: bool
    failed: bool
    pid: int
    since: float
    detail: str


def captured(spec: DeploymentSpec) -> CaptureSettings:
    """Which requests a revision's server keeps."""
    return replace(spec.capture, enabled=spec.captures)


def label_file() -> str:
    """A name that no other file of labels has, later ones behind earlier ones."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(6)}.parquet"


def check_gateway_settings(name: str, spec: DeploymentSpec, gateway: str) -> None:
    """Refuse settings that do nothing, or harm, without a gateway.

    Args:
        gateway: what the deployment has: `envoy` or `none`.

    Raises:
        ConfigError: a setting needs a gateway and there is none.
    """
    if gateway != "none":
        return
    default = EnvoySpec()
    needs = {f"{spec.replicas} replicas": spec.replicas > 1, "keep_revisions": spec.keep_revisions > 0}
    for field in EnvoySpec.model_fields:
        needs[f"envoy.{field}"] = getattr(spec.envoy, field) != getattr(default, field)
    if wanted := next((what for what, asked in needs.items() if asked), ""):
        raise ConfigError(
            f"Deployment {name!r} cannot have {wanted}",
            why="without a gateway one process has its port",
            hint="Create it with -C gateway=envoy, or leave this setting out",
        )


def combined(
    number: int, wanted: int, replicas: Sequence[ReplicaStatus], *, gateway_answers: bool
) -> RevisionStatus:
    """The status of a revision with these replicas, of which there is at least one.

    Args:
        wanted: how many there shall be.
        gateway_answers: also true where the revision does not stand behind a gateway.
    """
    ready = [replica for replica in replicas if replica.ready]
    first = (ready or replicas)[0]
    state: RevisionState = "ready" if ready and gateway_answers else "unavailable"
    detail = ""
    if not ready:
        state = "failed" if all(replica.failed for replica in replicas) else "unavailable"
        detail = first.detail
    elif not gateway_answers:
        detail = "its gateway does not answer"
    elif len(ready) < wanted:
        detail = f"{len(ready)} of {wanted} replicas are ready"
    # Any replica that is started again moves it on.
    since = max(replica.since for replica in replicas)
    return RevisionStatus(number=number, state=state, pid=first.pid, since=since, detail=detail)


def wait_until_ready(
    ready: Callable[[], bool], failure: Callable[[str], StartFailed], *, limit: float, poll: float
) -> None:
    """Wait until a replica accepts requests.

    Args:
        ready: looks once; raises when the replica has failed for good.
        failure: makes the error from its reason.
        limit: seconds that it may take.
        poll: seconds between two looks.

    Raises:
        StartFailed: it was not ready in time.
    """
    deadline = time.monotonic() + limit
    while not ready():
        if time.monotonic() > deadline:
            raise failure(f"it was not ready within {limit:g} s")
        time.sleep(poll)
