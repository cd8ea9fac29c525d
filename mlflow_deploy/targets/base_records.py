"""The records that every target keeps of its deployments, and what it tells of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mlflow_deploy.config import DeploymentSpec

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
