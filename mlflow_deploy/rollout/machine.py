"""The step machine: moves traffic to a candidate step by step, with an analysis in each, or takes it back.

Its state is part of the deployment's record and is written before each change, so whoever comes after a kill
knows where it stood. While it runs, other commands can say a word to it: pause, resume, promote or abort.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import RolloutFailed
from mlflow_deploy.rollout import moves
from mlflow_deploy.rollout.analysis import Verdict
from mlflow_deploy.rollout.evidence import Evidence
from mlflow_deploy.rollout.quality import Labels
from mlflow_deploy.rollout.strategies import Step, steps_of
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RolloutEvent, RolloutRecord, TrafficPoint

_POLL_SECONDS = 0.25


def run(
    target: Target,
    record: DeploymentRecord,
    spec: DeploymentSpec,
    bundles: Mapping[int, Bundle],
    *,
    now: Callable[[], str],
    progress: Callable[[str], None],
    labels: Labels | None = None,
) -> DeploymentRecord:
    """Move the traffic to the candidate of a record by the steps of the strategy.

    Args:
        record: names the candidate, which is ready and has no traffic.
        bundles: of the stable revision and of the candidate.
        now: gives the time in UTC, ISO 8601.
        progress: gets a line on what is going on.
        labels: tells how often each revision was right; None where no labels come.

    Returns:
        The record in which the candidate is stable.

    Raises:
        RolloutFailed: the analysis, the deadline or a person took it back; the stable revision has all traffic
            again and the candidate is stopped.
    """
    machine = _Machine(target, record, spec, bundles, now, progress, labels)
    try:
        return machine.run()
    except RolloutFailed:
        raise
    except BaseException as error:
        machine.take_back(f"interrupted: {type(error).__name__}: {error}".rstrip(": "))
        raise


def take_back(
    target: Target, record: DeploymentRecord, bundle: Bundle, reason: str, *, now: str
) -> DeploymentRecord:
    """End a rollout by giving all traffic back to the stable revision; also one that a killed command left.

    Where the stable revision has fewer replicas than usual, those that run take the traffic at once, because
    a candidate that is taken back is no help, and the others are started then.

    Args:
        bundle: of the stable revision.
    """
    rollout = record.rollout
    if rollout is None:
        return record
    ended = msgspec.structs.replace(
        rollout,
        outcome="rolled back",
        events=(*rollout.events, RolloutEvent(at=now, share=0, decision="rolled back", reason=reason)),
    )
    back = msgspec.structs.replace(record, last_rollout=ended)
    bundles = {rollout.stable: bundle}
    few = {number: count for number, count in record.replicas.items() if number == rollout.stable}
    back = moves.move(target, back, {rollout.stable: 100}, bundles, now=now, replicas=few)
    return moves.fill_up(target, back, bundles)


def settle(
    target: Target, record: DeploymentRecord, bundle_of: Callable[[int], Bundle], *, now: str
) -> DeploymentRecord:
    """Undo a rollout that a killed command left, at whatever line, and make what runs match the record."""
    if record.candidate:
        record = moves.abandon(target, record)
    if record.rollout:
        stable = bundle_of(record.rollout.stable)
        return take_back(target, record, stable, "the command that ran it was killed", now=now)
    bundles = {number: bundle_of(number) for number in [*record.wanted, *record.kept]}
    if record.replicas:
        return moves.fill_up(target, record, bundles)
    target.apply(record, bundles)
    return record


class _Machine:
    """One rollout while it is driven."""

    def __init__(
        self,
        target: Target,
        record: DeploymentRecord,
        spec: DeploymentSpec,
        bundles: Mapping[int, Bundle],
        now: Callable[[], str],
        progress: Callable[[str], None],
        labels: Labels | None,
    ) -> None:
        self._target, self._spec, self._bundles = target, spec, bundles
        self._now, self._progress = now, progress
        self._stable, self._candidate = record.stable.number, record.candidate
        self._evidence = Evidence(target, spec, self._stable, self._candidate, labels)
        self._since = 0.0
        self._deadline = time.monotonic() + spec.rollout_deadline_seconds
        self._record = record

    def run(self) -> DeploymentRecord:
        self._target.set_control(self._record.name, "")
        self._begin()
        steps = steps_of(self._spec, self._record.revision(self._stable).settings.replicas)
        shifts = sum(step.compare == "distribution" for step in steps)
        for step in steps:
            self._give(step)
            self._evidence.enter(self._record, step, shifts)
            verdict = self._watch(step)
            self._note(step, verdict.decision, verdict.reason)
        return self._finish()

    def take_back(self, reason: str) -> None:
        """Give all traffic back and remember why."""
        self._record = take_back(
            self._target, self._record, self._bundles[self._stable], reason, now=self._now()
        )
        self._evidence.end(self._record)

    @property
    def _rollout(self) -> RolloutRecord:
        rollout = self._record.rollout
        if rollout is None:
            raise AssertionError("a running rollout has its state in the record")
        return rollout

    def _begin(self) -> None:
        rollout = RolloutRecord(
            strategy=self._spec.strategy,
            stable=self._stable,
            candidate=self._candidate,
            started_at=self._now(),
        )
        self._record = msgspec.structs.replace(self._record, rollout=rollout, candidate=0)
        self._target.write_record(self._record)
        self._evidence.begin(self._record)

    def _give(self, step: Step) -> None:
        """Make a step's shares and replicas; the stable revision runs on even without traffic."""
        self._progress(self._told(step))
        weights = {self._candidate: step.share, self._stable: 100 - step.share}
        copies = {self._candidate: step.copies}
        if self._spec.analysis.max_answer_shift:
            copies[self._stable] = step.stable_copies
        replicas = dict(zip((self._stable, self._candidate), step.replicas or (), strict=False))
        point = TrafficPoint(
            at=self._now(),
            weights={number: weight for number, weight in weights.items() if weight},
            copies={number: percent for number, percent in copies.items() if percent},
        )
        rollout = self._rollout
        self._record = msgspec.structs.replace(
            self._record,
            weights=point.weights,
            mirror=point.copies,
            replicas=replicas,
            rollout=msgspec.structs.replace(rollout, traffic=(*rollout.traffic, point)),
            updated_at=point.at,
        )
        self._target.write_record(self._record)
        self._target.apply(self._record, self._bundles)
        # Replicas that were started by this step are no restarts.
        self._since = self._target.status(self._record, self._candidate).since

    def _watch(self, step: Step) -> Verdict:
        """Wait until the step is over; raises when it must not be."""
        spec, began = self._spec, time.monotonic()
        first = self._evidence.answered()
        while True:
            verdict = self._evidence.look(self._record, step)
            word = self._target.control(self._record.name)
            if word == "abort":
                self._fail(step, "a person aborted it")
            if word == "promote":
                # It is about this step only.
                self._target.set_control(self._record.name, "")
                return Verdict("passed", f"a person promoted it early; {verdict.reason}")
            if verdict.decision == "failed":
                self._fail(step, verdict.reason)
            over = self._is_ready(step) and time.monotonic() - began >= spec.step_seconds
            over = over and self._evidence.answered() - first >= spec.step_requests
            # A shadow harms nobody while it waits, and comparing is all that it is for.
            over = over and (step.compare != "rows" or verdict.decision == "passed")
            if word != "pause" and over:
                return verdict
            if word != "pause" and time.monotonic() > self._deadline:
                self._fail(step, f"not done within {spec.rollout_deadline_seconds:g} s; {verdict.reason}")
            paused = "paused, " if word == "pause" else ""
            self._progress(f"{self._told(step)}: {paused}{verdict.reason}")
            time.sleep(_POLL_SECONDS)

    def _told(self, step: Step) -> str:
        copies = f"copies of {step.copies}" if step.copies else str(step.share)
        replicas = f" on {step.replicas[1]} replicas" if step.replicas else ""
        return f"Revision {self._candidate} gets {copies} % of the requests{replicas}"

    def _is_ready(self, step: Step) -> bool:
        status = self._target.status(self._record, self._candidate)
        if status.state in ("failed", "stopped"):
            self._fail(step, f"the candidate is {status.state}: {status.detail}")
        if status.since > self._since:
            self._fail(step, "the candidate crashed and was started again")
        return status.state == "ready"

    def _note(self, step: Step, decision: str, reason: str) -> None:
        rollout = self._rollout
        event = RolloutEvent(
            at=self._now(), share=step.share, copies=step.copies, decision=decision, reason=reason
        )
        rollout = msgspec.structs.replace(
            rollout, events=(*rollout.events, event), shadow=self._evidence.report()
        )
        self._record = msgspec.structs.replace(self._record, rollout=rollout)
        self._target.write_record(self._record)

    def _fail(self, step: Step, reason: str) -> None:
        self._note(step, "failed", reason)
        self.take_back(reason)
        raise RolloutFailed(self._record.name, self._candidate, self._stable, reason)

    def _finish(self) -> DeploymentRecord:
        self._evidence.end(self._record)
        ended = msgspec.structs.replace(self._rollout, outcome="promoted")
        record = msgspec.structs.replace(self._record, last_rollout=ended)
        bundles = {self._candidate: self._bundles[self._candidate]}
        return moves.move(self._target, record, {self._candidate: 100}, bundles, now=self._now())
