"""The step machine: good candidates arrive, bad ones are taken back, whoever dies on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import RolloutFailed, Unsupported
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.rollout import machine, moves
from mlflow_deploy.rollout.strategies import check_strategy, steps_of
from mlflow_deploy.targets.base import DeploymentRecord
from mlflow_deploy.targets.memory import MemoryTarget
from mlflow_deploy.testing.targets import record_of, revision_of
from tests.bundles import adder_bundle

TIME = "2026-01-01T00:00:00+00:00"
FAST = {"strategy": "canary", "canary_steps": "10,50", "step_seconds": "0", "analysis.min_requests": "10"}


class Stage:
    """Revision 1 is stable, revision 2 is its candidate; `errors` tells how often each of them fails."""

    def __init__(self, folder: Path) -> None:
        self.target = MemoryTarget()
        self.bundles = {number: adder_bundle(folder / "store", folder, float(number)) for number in (1, 2)}
        record = msgspec.structs.replace(record_of(self.target, "d1", [self.bundles[1]]), gateway="envoy")
        self.target.write_record(record)
        self.target.apply(record, {1: self.bundles[1]})
        self.record = moves.bring_up(self.target, record, revision_of(self.bundles[2], 2), self.bundles[2])
        self.errors = {1: 0.0, 2: 0.0}
        self.seen: dict[int, int] = {1: 0, 2: 0}
        self.weights: list[dict[int, int]] = []
        self.on_look: Callable[[DeploymentRecord], None] = lambda record: None
        self.target.answered = self._answer

    def _answer(self, record: DeploymentRecord) -> dict[int, CallStats]:
        self.on_look(record)
        if not self.weights or self.weights[-1] != record.weights:
            self.weights.append(dict(record.weights))
        for number, weight in record.weights.items():
            self.seen[number] += weight
        return {
            number: CallStats(requests=count, server_errors=round(count * self.errors[number]))
            for number, count in self.seen.items()
        }

    def run(self, **changes: str) -> DeploymentRecord:
        spec = parse_spec({**FAST, **changes})
        return machine.run(
            self.target, self.record, spec, self.bundles, now=lambda: TIME, progress=lambda line: None
        )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


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


def test_killed_rollout_is_taken_back_by_who_comes_next(stage: Stage) -> None:
    class Killed(BaseException):
        """Stands for kill -9: nothing may run after it."""

    written: list[DeploymentRecord] = []
    write = stage.target.write_record

    def die_later(record: DeploymentRecord) -> None:
        write(record)
        written.append(record)
        if record.weights.get(2) == 50:
            stage.target.write_record = lambda record: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
            raise Killed

    stage.target.write_record = die_later  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stage.run()
    stage.target.write_record = write  # type: ignore[method-assign]
    left = stage.target.require("d1")
    assert left.weights == {1: 50, 2: 50}
    machine.take_back(stage.target, left, stage.bundles[1], "killed", now=TIME)
    assert stage.target.require("d1").weights == {1: 100}
    assert running(stage) == [1]


def test_strategies_and_what_they_need(stage: Stage) -> None:
    assert steps_of(parse_spec({})) == ()
    assert steps_of(parse_spec({"strategy": "blue-green"})) == (100,)
    assert steps_of(parse_spec({"strategy": "canary", "canary_steps": "5,25,100"})) == (5, 25, 100)
    without = msgspec.structs.replace(stage.record, gateway="none")
    with pytest.raises(Unsupported, match="gateway=envoy"):
        check_strategy(stage.target, without, parse_spec(FAST))
    check_strategy(stage.target, without, parse_spec({}))
