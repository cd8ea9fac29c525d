"""Drafts of release records: from a change in a deployment's history, or from an intent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.lifecycle.records.facts import (
    approvers,
    bundle_on_this_machine,
    environment,
    image_of,
    model_facts,
    parity_report,
)
from mlflow_deploy.lifecycle.records.intent import Intent, intent_of
from mlflow_deploy.lifecycle.records.record import ModelFacts, ReleaseRecord, Served
from mlflow_deploy.lifecycle.steps import now
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import (
    ChangeRecord,
    DeploymentRecord,
    RevisionRecord,
    RolloutRecord,
    TrafficPoint,
)


@dataclass(frozen=True)
class Draft:
    """What every draft is made from.

    Attributes:
        record: the deployment as it is; None when it is gone.
        late: why the command that made the change did not record it.
        intents: what commands said they would do.
    """

    target: Target
    record: DeploymentRecord | None
    late: str
    intents: Sequence[Intent]


def release_draft(draft: Draft, change: ChangeRecord, started: ChangeRecord | None) -> ReleaseRecord:
    """The draft of a change in the history of a deployment."""
    record = draft.record
    if record is None:
        raise AssertionError("a history belongs to a deployment")
    intent = intent_of(draft.intents, record.created_at, change, started)
    known = {each.number: each for each in record.revisions}
    if intent and intent.revision:
        known.setdefault(intent.revision.number, intent.revision)
    about = known.get(change.revision) or (intent.revision if intent else None)
    rollout = _rollout_of(record, change, started)
    timeline = _timeline(change, rollout)
    whole = _about(draft.target, about, change.model)
    return msgspec.structs.replace(
        whole,
        deployment=record.name,
        life=record.created_at,
        change=change.number,
        action=change.action,
        outcome=change.outcome,
        reason=change.reason,
        began_at=(started or change).at,
        at=change.at,
        late=draft.late,
        requester=change.by,
        approvers=approvers(intent.evidence) if intent else (),
        revision=change.revision or (about.number if about else 0),
        evidence=intent.evidence if intent else {},
        before=change.before,
        after=change.after,
        timeline=timeline,
        served=_served(known.values(), [*timeline, TrafficPoint(at="", weights=change.before)]),
        rollout=rollout,
    )


def deletion_draft(draft: Draft, name: str, intent: Intent, reason: str) -> ReleaseRecord:
    """The draft of a deployment's end."""
    at = intent.at if draft.late else now()
    known = [intent.revision] if intent.revision else []
    return msgspec.structs.replace(
        _about(draft.target, intent.revision, ""),
        deployment=name,
        life=intent.life,
        change=0,
        action="delete",
        outcome="done",
        reason=reason,
        began_at=intent.at,
        at=at,
        late=draft.late,
        requester=intent.by,
        revision=0,
        before=intent.weights,
        timeline=(TrafficPoint(at=at, weights={}, reason="the deployment was deleted"),),
        served=_served(known, [TrafficPoint(at="", weights=intent.weights)]),
    )


def failed_creation_draft(draft: Draft, name: str, intent: Intent, reason: str) -> ReleaseRecord:
    """The draft of a deployment that did not come to be; it never served."""
    return msgspec.structs.replace(
        _about(draft.target, intent.revision, ""),
        deployment=name,
        life=intent.revision.created_at if intent.revision else intent.at,
        change=0,
        action="create",
        outcome="rolled_back",
        reason=reason,
        began_at=intent.at,
        at=intent.at if draft.late else now(),
        late=draft.late,
        requester=intent.by,
        approvers=approvers(intent.evidence),
        evidence=intent.evidence,
    )


def _about(target: Target, revision: RevisionRecord | None, model: str) -> ReleaseRecord:
    """What a record says of the revision that it is about; the rest is to be filled in."""
    bundle: Bundle | None = bundle_on_this_machine(revision.bundle) if revision else None
    return ReleaseRecord(
        deployment="",
        target=target.name,
        life="",
        change=0,
        action="",
        outcome="",
        began_at="",
        at="",
        recorded_at=now(),
        requester="",
        revision=revision.number if revision else 0,
        model=model_facts(revision, bundle) if revision else ModelFacts(uri=model),
        bundle=revision.bundle if revision else "",
        image=image_of(target, revision, bundle) if revision else "",
        format=revision.format if revision else "",
        parity=parity_report(bundle),
        environment=environment(),
    )


def _rollout_of(
    record: DeploymentRecord, change: ChangeRecord, started: ChangeRecord | None
) -> RolloutRecord | None:
    """The rollout by steps that a change is the end of, None where there was none."""
    last = record.last_rollout
    if change.action != "update" or last is None or last.candidate != change.revision:
        return None
    return last if last.started_at >= (started or change).at else None


def _timeline(change: ChangeRecord, rollout: RolloutRecord | None) -> tuple[TrafficPoint, ...]:
    """The shares that a rollout gave, with the reason of each, and those at the end."""
    steps = []
    if rollout:
        events = [*rollout.events]
        for position, point in enumerate(rollout.traffic):
            event = events[position] if position < len(events) else None
            reason = f"{event.decision}: {event.reason}" if event else ""
            steps.append(msgspec.structs.replace(point, reason=reason))
    if not steps and change.before == change.after:
        return ()
    words = f"{change.action} {change.outcome}".replace("_", " ")
    reason = f"{words}: {change.reason}" if change.reason else words
    return (*steps, TrafficPoint(at=change.at, weights=change.after, reason=reason))


def _served(known: Iterable[RevisionRecord], points: Iterable[TrafficPoint]) -> dict[int, Served]:
    numbers = {number for point in points for number in (*point.weights, *point.copies)}
    return {
        each.number: Served(model=each.resolved_uri, bundle=each.bundle)
        for each in known
        if each.number in numbers
    }
