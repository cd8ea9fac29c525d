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
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.rollout.analysis import Verdict, analyse
from mlflow_deploy.rollout.moves import move
from mlflow_deploy.rollout.strategies import steps_of
from mlflow_deploy.targets.base import DeploymentRecord, RolloutEvent, RolloutRecord, Target

_POLL_SECONDS = 0.25


def run(
    target: Target,
    record: DeploymentRecord,
    spec: DeploymentSpec,
    bundles: Mapping[int, Bundle],
    *,
    now: Callable[[], str],
    progress: Callable[[str], None],
) -> DeploymentRecord:
    """Move the traffic to the candidate of a record by the steps of the strategy.

    Args:
        record: names the candidate, which is ready and has no traffic.
        bundles: of the stable revision and of the candidate.
        now: gives the time in UTC, ISO 8601.
        progress: gets a line on what is going on.

    Returns:
        The record in which the candidate is stable.

    Raises:
        RolloutFailed: the analysis, the deadline or a person took it back; the stable revision has all traffic
            again and the candidate is stopped.
    """
    machine = _Machine(target, record, spec, bundles, now, progress)
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
    return move(target, back, {rollout.stable: 100}, {rollout.stable: bundle}, now=now)


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
    ) -> None:
        self._target, self._spec, self._bundles = target, spec, bundles
        self._now, self._progress = now, progress
        self._stable, self._candidate = record.stable.number, record.candidate
        self._since = target.status(record, record.candidate).since
        self._deadline = time.monotonic() + spec.rollout_deadline_seconds
        self._record = record

    def run(self) -> DeploymentRecord:
        self._target.set_control(self._record.name, "")
        begun = self._begin()
        for share in steps_of(self._spec):
            self._give(share)
            verdict = self._watch(share, begun)
            self._note(share, verdict.decision, verdict.reason)
        return self._finish()

    def take_back(self, reason: str) -> None:
        """Give all traffic back and remember why."""
        self._record = take_back(
            self._target, self._record, self._bundles[self._stable], reason, now=self._now()
        )

    def _begin(self) -> dict[int, CallStats]:
        rollout = RolloutRecord(
            strategy=self._spec.strategy,
            stable=self._stable,
            candidate=self._candidate,
            started_at=self._now(),
        )
        self._record = msgspec.structs.replace(self._record, rollout=rollout, candidate=0)
        self._target.write_record(self._record)
        return self._target.stats(self._record)

    def _give(self, share: int) -> None:
        """Give the candidate its share; the stable revision runs on even without traffic."""
        self._progress(f"Revision {self._candidate} gets {share} % of the requests")
        weights = {self._candidate: share, self._stable: 100 - share}
        self._record = msgspec.structs.replace(
            self._record, weights={n: w for n, w in weights.items() if w}, updated_at=self._now()
        )
        self._target.write_record(self._record)
        self._target.apply(self._record, self._bundles)

    def _watch(self, share: int, begun: Mapping[int, CallStats]) -> Verdict:
        """Wait until the step is over; raises when it must not be."""
        spec, began = self._spec, time.monotonic()
        first = self._seen(begun)[self._candidate].requests
        while True:
            seen = self._seen(begun)
            verdict = analyse(seen[self._stable], seen[self._candidate], spec.analysis)
            word = self._target.control(self._record.name)
            if word == "abort":
                self._fail(share, "a person aborted it")
            if word == "promote":
                # It is about this step only.
                self._target.set_control(self._record.name, "")
                return Verdict("passed", f"a person promoted it early; {verdict.reason}")
            if verdict.decision == "failed":
                self._fail(share, verdict.reason)
            ready = self._is_ready(share)
            enough = seen[self._candidate].requests - first >= spec.step_requests
            over = enough and ready and time.monotonic() - began >= spec.step_seconds
            if word != "pause" and over:
                return verdict
            if word != "pause" and time.monotonic() > self._deadline:
                self._fail(share, f"not done within {spec.rollout_deadline_seconds:g} s; {verdict.reason}")
            paused = "paused, " if word == "pause" else ""
            self._progress(f"Revision {self._candidate} at {share} %: {paused}{verdict.reason}")
            time.sleep(_POLL_SECONDS)

    def _seen(self, begun: Mapping[int, CallStats]) -> dict[int, CallStats]:
        """What each of the two has answered since the rollout began."""
        stats = self._target.stats(self._record)
        empty = CallStats()
        return {
            number: stats.get(number, empty).since(begun.get(number, empty))
            for number in (self._stable, self._candidate)
        }

    def _is_ready(self, share: int) -> bool:
        status = self._target.status(self._record, self._candidate)
        if status.state in ("failed", "stopped"):
            self._fail(share, f"the candidate is {status.state}: {status.detail}")
        if status.since > self._since:
            self._fail(share, "the candidate crashed and was started again")
        return status.state == "ready"

    def _note(self, share: int, decision: str, reason: str) -> None:
        rollout = self._record.rollout
        if rollout is None:
            raise AssertionError("a running rollout has its state in the record")
        event = RolloutEvent(at=self._now(), share=share, decision=decision, reason=reason)
        rollout = msgspec.structs.replace(rollout, events=(*rollout.events, event))
        self._record = msgspec.structs.replace(self._record, rollout=rollout)
        self._target.write_record(self._record)

    def _fail(self, share: int, reason: str) -> None:
        self._note(share, "failed", reason)
        self.take_back(reason)
        raise RolloutFailed(self._record.name, self._candidate, self._stable, reason)

    def _finish(self) -> DeploymentRecord:
        rollout = self._record.rollout
        if rollout is None:
            raise AssertionError("a running rollout has its state in the record")
        ended = msgspec.structs.replace(rollout, outcome="promoted")
        record = msgspec.structs.replace(self._record, last_rollout=ended)
        bundles = {self._candidate: self._bundles[self._candidate]}
        return move(self._target, record, {self._candidate: 100}, bundles, now=self._now())
