"""Recording: each finished change of a deployment becomes a release record, also after a kill.

The deployment's own history is written in the same step as the state, so whatever is in it and not in the
chain was made by a command that was killed before it recorded, and is recorded by the next one. What leaves
no such history - a deployment that is removed, or was never finished - is announced by an intent first.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_deploy.errors import DeployError, StateWriteFailed
from mlflow_deploy.lifecycle.records.build import Draft, deletion_draft, failed_creation_draft, release_draft
from mlflow_deploy.lifecycle.records.chain import append, read_head
from mlflow_deploy.lifecycle.records.intent import Intent, intents_of, write_intents
from mlflow_deploy.lifecycle.records.outbox import flush
from mlflow_deploy.lifecycle.records.record import ReleaseRecord
from mlflow_deploy.lifecycle.steps import clear, now
from mlflow_deploy.rollout.journal import who, why
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import ChangeRecord, DeploymentRecord, RevisionRecord

KILLED = "the command that made this change was killed before it was recorded"
TAKEN_OVER = "taken over from the history of a deployment that was made before release records were kept"

_LOG = logging.getLogger("mlflow_deploy")


class Recorder:
    """Takes down what a command does to one deployment while its lock is held.

    Attributes:
        written: the records of what this command did, the oldest first.
        caught_up: how many records of earlier commands it wrote.
        note: why nothing could be recorded; empty when all was.
        mlflow: whether the records are in MLflow, or why not yet.
    """

    def __init__(self, target: Target, name: str) -> None:
        self._target, self._name = target, name
        self.written: list[ReleaseRecord] = []
        self.caught_up = 0
        self.note = ""
        self.mlflow = ""

    def intend(
        self,
        action: str,
        *,
        revision: RevisionRecord | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        """Announce what the history cannot tell after a kill, before it is begun.

        Args:
            action: create, update or delete.
            revision: that shall come, or the stable one of a deployment that shall go.
            evidence: what came along with the request.

        Raises:
            StateWriteFailed: it cannot be written; nothing was begun.
        """
        record = self._target.read_record(self._name)
        intent = Intent(
            action=action,
            at=now(),
            by=who(),
            life=record.created_at if record and action != "create" else "",
            after=record.history[-1].number if record and record.history else 0,
            revision=revision,
            weights=dict(record.weights) if record else {},
            # A number of NumPy's or a path in it must not keep a version from being deployed.
            evidence=json.loads(json.dumps(evidence or {}, default=str)),
        )
        write_intents(self._target, self._name, [*intents_of(self._target, self._name), intent])

    def catch_up(self, *, late: str = "", error: BaseException | None = None) -> None:
        """Record every finished change that is not in the chain; the caller holds the lock.

        Args:
            late: why an earlier command did not; empty for the changes of this one.
            error: that this command ends with.

        Raises:
            DeployError: the archive cannot be read or written.
        """
        record = self._target.read_record(self._name)
        ready = record if record is not None and record.phase == "ready" else None
        intents = intents_of(self._target, self._name)
        head = read_head(self._target, self._name)
        late = TAKEN_OVER if late and not head.number and not intents else late
        unfinished = False
        if ready is not None:
            done = head.change if head.life == ready.created_at else 0
            changes, unfinished = _finished(ready)
            for change, started in changes:
                if change.number > done:
                    draft = Draft(self._target, ready, late, intents)
                    self._append(release_draft(draft, change, started))
        for intent in intents:
            draft = Draft(self._target, ready, late, intents)
            if intent.action == "delete" and record is None:
                self._append(deletion_draft(draft, self._name, intent, why(error) if error else ""))
            elif intent.action == "create" and ready is None:
                reason = why(error) if error else "the command that ran it was killed"
                self._append(failed_creation_draft(draft, self._name, intent, reason))
        if intents and not unfinished and (record is None or ready is not None):
            write_intents(self._target, self._name, [])

    def finish(self, error: BaseException | None) -> None:
        """Record what this command did; a failure is told and left to the next command."""
        try:
            self.catch_up(error=error)
        except DeployError as failed:
            self.give_up(failed)

    def give_up(self, error: DeployError) -> None:
        """Say that something is not recorded yet."""
        self.note = f"the release of {self._name} is not recorded yet, the next command does it: {error.text}"
        _LOG.warning(self.note)

    def _append(self, draft: ReleaseRecord) -> None:
        self.written.append(append(self._target, self._name, draft))

    @property
    def summary(self) -> dict[str, Any]:
        """What the flow answers about the record of this command; plain values."""
        last = self.written[-1] if self.written else None
        return {
            "record": last.number if last else None,
            "hash": last.hash if last else None,
            "mlflow": self.mlflow,
            "note": self.note,
        }


@contextlib.contextmanager
def recorded(target: Target, name: str, *, at_any_rate: bool = False) -> Iterator[Recorder]:
    """Hold a deployment, remove what killed commands left half made, and record what is done to it.

    The record is first a file on the target; MLflow gets its copy after the lock is free, within a few
    seconds or by a later command.

    Args:
        at_any_rate: go on, and say so, where nothing can be recorded: what shall be removed may be broken.

    Raises:
        DeploymentBusy: another command holds it.
        StateWriteFailed: what an earlier command did cannot be recorded; nothing was begun.
    """
    recorder = Recorder(target, name)
    try:
        with target.lock(name):
            try:
                clear(target, name)
                recorder.catch_up(late=KILLED)
            except StateWriteFailed as error:
                if not at_any_rate:
                    raise
                recorder.give_up(error)
            recorder.caught_up = len(recorder.written)
            recorder.written.clear()
            try:
                yield recorder
            except BaseException as error:
                recorder.finish(error)
                raise
            recorder.finish(None)
    finally:
        if recorder.written or recorder.caught_up:
            recorder.mlflow = flush(target, name).text


def catch_up(target: Target, name: str) -> str:
    """Record what killed commands left unrecorded, when no other command holds the name.

    Returns:
        The empty string, or why it could not be done.
    """
    try:
        with recorded(target, name):
            return ""
    except DeployError as error:
        return error.text


def _finished(record: DeploymentRecord) -> tuple[list[tuple[ChangeRecord, ChangeRecord | None]], bool]:
    """Each finished change with its announcement, and whether one was announced that has no end yet."""
    found: list[tuple[ChangeRecord, ChangeRecord | None]] = []
    started: ChangeRecord | None = None
    for change in record.history:
        if change.outcome == "started":
            started = change
            continue
        found.append((change, started))
        started = None
    return found, started is not None
