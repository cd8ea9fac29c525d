"""The step machine: good candidates arrive, bad ones are taken back, whoever dies on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import RolloutFailed, Unsupported
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.rollout import machine, moves, recording
from mlflow_deploy.rollout.quality import Labels, Outcomes
from mlflow_deploy.rollout.strategies import Step, check_strategy, first_replicas, steps_of
from mlflow_deploy.serving.recorder import Record
from mlflow_deploy.targets.base import Capability
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord
from mlflow_deploy.targets.memory import MemoryTarget
from mlflow_deploy.testing.targets import record_of, revision_of

TIME = "2026-01-01T00:00:00+00:00"
FAST = {"strategy": "canary", "canary_steps": "10,50", "step_seconds": "0", "analysis.min_requests": "10"}


def answer(request_id: str, value: float) -> Record:
    """A request that was answered with one number."""
    return Record(
        number=0,
        id=request_id,
        path="/invocations",
        status=200,
        seconds=0.001,
        digest=1,
        request=b'{"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}',
        request_type="application/json identity",
        answer=msgspec.json.encode({"predictions": [value]}),
        answer_type="application/json identity",
    )


class Stage:
    """Revision 1 is stable, revision 2 is its candidate.

    `errors` tells how often each of them fails, `answers` what it answers to the n-th request.
    """

    def __init__(
        self, bundles: dict[int, Bundle], target: MemoryTarget | None = None, replicas: int = 1
    ) -> None:
        self.target = target or MemoryTarget()
        self.bundles = bundles
        record = msgspec.structs.replace(record_of(self.target, "d1", [self.bundles[1]]), gateway="envoy")
        self.revisions = [self._revision(number, replicas) for number in (1, 2)]
        record = msgspec.structs.replace(record, revisions=(self.revisions[0],))
        self.target.write_record(record)
        self.target.apply(record, {1: self.bundles[1]})
        self.record = record
        self.errors = {1: 0.0, 2: 0.0}
        self.seen: dict[int, int] = {1: 0, 2: 0}
        self.weights: list[dict[int, int]] = []
        self.on_look: Callable[[DeploymentRecord], None] = lambda record: None
        self.answers: dict[int, Callable[[int], float]] = dict.fromkeys((1, 2), lambda at: float(at % 7))
        self.asked = {1: 0, 2: 0}
        self.target.answered = self._answer
        self.target.recorded = self._record

    def _record(self, record: DeploymentRecord, number: int) -> list[Record]:
        """Twenty requests since the last time; the answers of the same request are those of `answers`."""
        self.asked[number] += 20
        mine = range(self.asked[number] - 20, self.asked[number])
        return [answer(f"request-{at}", self.answers[number](at)) for at in mine]

    def _answer(self, record: DeploymentRecord) -> dict[int, CallStats]:
        self.on_look(record)
        if not self.weights or self.weights[-1] != record.weights:
            self.weights.append(dict(record.weights))
        for number, weight in (*record.weights.items(), *record.mirror.items()):
            self.seen[number] += weight
        return {
            number: CallStats(requests=count, server_errors=round(count * self.errors[number]))
            for number, count in self.seen.items()
        }

    def _revision(self, number: int, replicas: int) -> RevisionRecord:
        made = revision_of(self.bundles[number], number)
        return msgspec.structs.replace(made, spec={**made.spec, "replicas": replicas})

    def run(self, labels: Labels | None = None, **changes: str) -> DeploymentRecord:
        """Update to revision 2."""
        replicas = self.revisions[1].settings.replicas
        spec = parse_spec({**FAST, "replicas": replicas, **changes})
        self.record = moves.bring_up(
            self.target, self.record, self.revisions[1], self.bundles[2], replicas=first_replicas(spec)
        )
        return machine.run(
            self.target,
            self.record,
            spec,
            self.bundles,
            now=lambda: TIME,
            progress=lambda line: None,
            labels=labels,
        )


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(recording, "_EVERY_SECONDS", 0.0)


@pytest.fixture
def stage(adders: dict[int, Bundle]) -> Stage:
    return Stage(adders)


def running(stage: Stage) -> list[int]:
    record = stage.target.require("d1")
    return [n for n in (1, 2) if stage.target.status(record, n).state == "ready"]


def test_good_canary_goes_by_its_steps_to_the_end(stage: Stage) -> None:
    record = stage.run()
    assert stage.weights == [{1: 100}, {1: 90, 2: 10}, {1: 50, 2: 50}, {2: 100}]
    assert (record.weights, record.previous, record.rollout) == ({2: 100}, (1,), None)
    assert running(stage) == [2]
    assert record.last_rollout is not None
    assert record.last_rollout.outcome == "promoted"
    assert [event.share for event in record.last_rollout.events] == [10, 50, 100]


def test_bad_canary_is_taken_back_at_its_first_step(stage: Stage) -> None:
    stage.errors[2] = 0.5
    with pytest.raises(RolloutFailed, match="too many errors"):
        stage.run(step_requests="200")
    record = stage.target.require("d1")
    assert (record.weights, record.previous, record.rollout) == ({1: 100}, (), None)
    assert running(stage) == [1]
    assert record.last_rollout is not None
    assert record.last_rollout.outcome == "rolled back"
    assert max(weights.get(2, 0) for weights in stage.weights) == 10


def test_blue_green_keeps_the_old_side_until_the_new_one_has_passed(stage: Stage) -> None:
    stage.errors[2] = 0.5
    with pytest.raises(RolloutFailed):
        stage.run(strategy="blue-green", step_requests="500")
    assert stage.weights[-1] == {2: 100}
    assert running(stage) == [1]


def test_shadow_that_agrees_gets_the_traffic(stage: Stage) -> None:
    record = stage.run(strategy="shadow", shadow_percent="60")
    assert stage.weights == [{1: 100}, {2: 100}]
    assert (record.weights, record.mirror) == ({2: 100}, {})
    ended = record.last_rollout
    assert ended is not None
    assert [(event.share, event.copies) for event in ended.events] == [(0, 60), (100, 0)]
    assert ended.events[0].decision == "passed"
    assert ended.shadow is not None
    assert (ended.shadow.different, ended.shadow.worst) == (0, ())
    assert ended.shadow.requests >= 10
    assert running(stage) == [2]


def test_shadow_that_disagrees_is_taken_back_with_its_worst_rows(stage: Stage) -> None:
    stage.answers[2] = lambda at: at % 7 + (0.5 + at if at % 2 else 0.0)
    with pytest.raises(RolloutFailed, match="too many differences"):
        stage.run(strategy="shadow")
    record = stage.target.require("d1")
    assert (record.weights, record.mirror) == ({1: 100}, {})
    assert running(stage) == [1]
    assert record.last_rollout is not None
    found = record.last_rollout.shadow
    assert found is not None
    assert found.disagreement == pytest.approx(0.5, abs=0.05)
    assert len(found.worst) == 5
    worst = found.worst[0]
    assert worst.distance is not None
    assert worst.distance > 1
    assert worst.inputs == '{"x": 1.0}'
    assert float(worst.candidate) > float(worst.stable)


def test_shadow_waits_for_evidence_until_the_deadline(stage: Stage) -> None:
    stage.target.recorded = None
    with pytest.raises(RolloutFailed, match=r"not done within.*too few requests were compared"):
        stage.run(strategy="shadow", rollout_deadline_seconds="0.3")
    assert running(stage) == [1]


def test_answers_that_shift_are_taken_back(stage: Stage) -> None:
    stage.answers[2] = lambda at: 5.0 + at % 7
    changes = {"strategy": "blue-green", "step_requests": "20000", "analysis.min_requests": "100"}
    with pytest.raises(RolloutFailed, match="too different answers"):
        stage.run(**changes)
    assert running(stage) == [1]


def test_answers_are_not_compared_when_not_wanted(stage: Stage) -> None:
    stage.answers[2] = lambda at: 5.0 + at % 7
    changes = {"strategy": "blue-green", "step_requests": "2000", "analysis.max_answer_shift": "0"}
    record = stage.run(**changes)
    assert record.last_rollout is not None
    assert "apart" not in record.last_rollout.events[0].reason
    assert stage.asked == {1: 20, 2: 20}  # only when recording was switched off at the end


def test_labels_decide_where_they_come(stage: Stage) -> None:
    with pytest.raises(
        RolloutFailed, match="too often wrong: 150 of 300 labelled answers wrong, stable 30 of 300"
    ):
        stage.run(lambda: {1: Outcomes(270, 30), 2: Outcomes(150, 150)})
    assert running(stage) == [1]


def test_rolling_replaces_replicas_and_never_has_fewer(adders: dict[int, Bundle]) -> None:
    fewest: list[int] = []

    class Counting(MemoryTarget):
        def start(self, *arguments: Any) -> Any:
            done = super().start(*arguments)
            fewest.append(sum(self.replicas.values()))
            return done

    stage = Stage(adders, Counting(), replicas=3)
    del fewest[:]
    record = stage.run(strategy="rolling")
    assert stage.weights == [{1: 100}, {1: 67, 2: 33}, {1: 33, 2: 67}, {2: 100}]
    assert (record.weights, record.replicas) == ({2: 100}, {})
    assert stage.target.replicas == {("d1", 2): 3}
    assert min(fewest) >= 3
    assert max(fewest) <= 4


def test_bad_rolling_update_brings_all_replicas_back(adders: dict[int, Bundle]) -> None:
    stage = Stage(adders, replicas=3)
    stage.errors[2] = 0.5
    with pytest.raises(RolloutFailed, match="too many errors"):
        stage.run(strategy="rolling", step_requests="300")
    record = stage.target.require("d1")
    assert (record.weights, record.replicas) == ({1: 100}, {})
    assert stage.target.replicas == {("d1", 1): 3}


def test_candidate_that_dies_is_taken_back(stage: Stage) -> None:
    stage.on_look = lambda record: stage.target.stop("d1", 2) if record.weights.get(2) else None
    with pytest.raises(RolloutFailed, match="the candidate is stopped"):
        stage.run()
    assert running(stage) == [1]


def test_too_little_traffic_ends_at_the_deadline(stage: Stage) -> None:
    with pytest.raises(RolloutFailed, match="not done within"):
        stage.run(step_requests="1000000", rollout_deadline_seconds="0.6")
    assert running(stage) == [1]


@pytest.mark.parametrize(("word", "end"), [("abort", [1]), ("promote", [2])])
def test_words_of_people_are_obeyed(stage: Stage, word: str, end: list[int]) -> None:
    stage.on_look = lambda record: stage.target.set_control("d1", word)
    if word == "abort":
        with pytest.raises(RolloutFailed, match="a person aborted it"):
            stage.run(step_seconds="60")
    else:
        stage.run(step_seconds="60")
    assert running(stage) == end


def test_pause_holds_until_resume(stage: Stage) -> None:
    looks: list[int] = []

    def look(record: DeploymentRecord) -> None:
        looks.append(record.weights.get(2, 0))
        stage.target.set_control("d1", "pause" if len(looks) < 8 else "resume")

    stage.on_look = look
    stage.run()
    assert looks.count(10) >= 6


def test_interrupted_rollout_is_taken_back(stage: Stage) -> None:
    def interrupt(record: DeploymentRecord) -> None:
        if record.weights.get(2) == 50:
            raise KeyboardInterrupt

    stage.on_look = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    record = stage.target.require("d1")
    assert record.weights == {1: 100}
    assert record.last_rollout is not None
    assert "KeyboardInterrupt" in record.last_rollout.events[-1].reason


def test_strategies_and_what_they_need(stage: Stage) -> None:
    assert steps_of(parse_spec({})) == ()
    assert steps_of(parse_spec({"strategy": "blue-green"})) == (Step(100, stable_copies=100),)
    canary = steps_of(parse_spec({"strategy": "canary", "canary_steps": "5,25,100"}))
    assert [step.share for step in canary] == [5, 25, 100]
    assert [step.share for step in steps_of(parse_spec({"strategy": "shadow"}))] == [0, 100]
    rolling = steps_of(parse_spec({"strategy": "rolling", "replicas": "4"}), stable_replicas=4)
    assert [(step.share, step.replicas) for step in rolling] == [
        (25, (3, 1)),
        (50, (2, 2)),
        (75, (1, 3)),
        (100, (1, 4)),
    ]
    without = msgspec.structs.replace(stage.record, gateway="none")
    with pytest.raises(Unsupported, match="gateway=envoy"):
        check_strategy(stage.target, without, parse_spec(FAST))
    check_strategy(stage.target, without, parse_spec({}))
    stage.target.capabilities = frozenset({Capability.TRAFFIC_SPLIT})
    check_strategy(stage.target, stage.record, parse_spec(FAST))
    with pytest.raises(Unsupported, match="strategy=canary"):
        check_strategy(stage.target, stage.record, parse_spec({"strategy": "shadow"}))
