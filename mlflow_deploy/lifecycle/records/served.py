"""What served at a moment: read from the timelines of the release records and of a rollout that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from mlflow_deploy.lifecycle.records.chain import read_chain
from mlflow_deploy.lifecycle.records.record import ReleaseRecord, Served
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, TrafficPoint


class ServedAt(msgspec.Struct, frozen=True, kw_only=True):
    """Who got the requests of a deployment at a moment.

    Attributes:
        at: the moment, UTC, ISO 8601.
        since: from when on it was so; empty before the first release.
        shares: revision -> share in percent; empty when nothing served.
        copies: revision -> percent of the requests that it got copies of.
        served: revision -> its model version and bundle.
        record: number of the release record that says so; 0 for a rollout that goes on, or before the first.
        action: what was done in that release.
        requester: who ran it.
        approvers: who had approved it.
        reason: why the shares were so.
    """

    deployment: str
    target: str
    at: str
    since: str = ""
    shares: dict[int, int] = {}
    copies: dict[int, int] = {}
    served: dict[int, Served] = {}
    record: int = 0
    action: str = ""
    requester: str = ""
    approvers: tuple[str, ...] = ()
    reason: str = ""


def served_at(target: Target, name: str, moment: datetime) -> ServedAt:
    """What a deployment served at a moment; times are kept to the second.

    Raises:
        StateWriteFailed: a record cannot be read.
    """
    live = target.read_record(name)
    found = _last([*_recorded(read_chain(target, name)), *_going_on(live)], moment)
    nothing = ServedAt(deployment=name, target=target.name, at=moment.astimezone(UTC).isoformat())
    if found is None:
        return msgspec.structs.replace(nothing, reason="it was before the first release")
    point, record = found
    known = dict(record.served) if record else {}
    if live and not record:
        known = {each.number: Served(model=each.resolved_uri, bundle=each.bundle) for each in live.revisions}
    answer = msgspec.structs.replace(
        nothing,
        since=point.at,
        shares=point.weights,
        copies=point.copies,
        served={number: known[number] for number in {*point.weights, *point.copies} if number in known},
        reason=point.reason,
    )
    if record is None:
        begun = live.history[-1].by if live and live.history else ""
        return msgspec.structs.replace(answer, action="update", requester=begun, reason="a rollout goes on")
    return msgspec.structs.replace(
        answer,
        record=record.number,
        action=record.action,
        requester=record.requester,
        approvers=record.approvers,
    )


def _recorded(records: Sequence[ReleaseRecord]) -> list[tuple[TrafficPoint, ReleaseRecord | None]]:
    return [(point, record) for record in records for point in record.timeline]


def _going_on(live: DeploymentRecord | None) -> list[tuple[TrafficPoint, ReleaseRecord | None]]:
    rollout = live.rollout if live else None
    return [(point, None) for point in rollout.traffic] if rollout else []


def _last(
    points: Sequence[tuple[TrafficPoint, ReleaseRecord | None]], moment: datetime
) -> tuple[TrafficPoint, ReleaseRecord | None] | None:
    """The last point that is not after the moment; of several in one second the one that was written last."""
    found = None
    for each in sorted(points, key=lambda point: datetime.fromisoformat(point[0].at)):
        if datetime.fromisoformat(each[0].at) <= moment:
            found = each
    return found
