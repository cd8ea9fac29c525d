"""A rollout may be killed before any call to its target, and so may the command that cleans up after it."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.rollout import machine, recording
from mlflow_deploy.targets.memory import MemoryTarget
from tests.unit.rollout.test_machine import TIME, Stage

STRATEGIES = ["rolling", "blue-green", "canary", "shadow"]


class Killed(BaseException):
    """Stands for kill -9: nothing runs after it."""


class MortalTarget(MemoryTarget):
    """Its caller dies at the call that `left` counts down to, and at every one after that."""

    left: int | None = None
    calls = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in (
            "write_record",
            "start",
            "stop",
            "apply",
            "stats",
            "status",
            "ask",
            "set_control",
            "control",
        ):
            return found

        @functools.wraps(found)
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.left is not None:
                if self.left <= 0:
                    raise Killed
                self.left -= 1
            return found(*arguments, **named)

        return call


@pytest.fixture(scope="module", autouse=True)
def _hurry() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_POLL_SECONDS", 0.0)
        patch.setattr(recording, "_EVERY_SECONDS", 0.0)
        yield


def play(
    bundles: dict[int, Bundle], strategy: str, replicas: int, first: int | None, second: int | None
) -> MortalTarget:
    """Update until the first kill, clean up until the second one, then clean up in peace."""
    target = MortalTarget()
    stage = Stage(bundles, target, replicas)
    target.calls, target.left = 0, first
    with contextlib.suppress(Killed):
        stage.run(strategy=strategy)
    for left in (second, None):
        target.left = left
        try:
            machine.settle(target, target.require("d1"), stage.bundles.__getitem__, now=TIME)
        except Killed:
            continue
        break
    return target


@settings(max_examples=200, deadline=None)
@given(
    strategy=some.sampled_from(STRATEGIES),
    replicas=some.integers(1, 3),
    first=some.integers(0, 90),
    second=some.integers(0, 12),
)
def test_killed_rollout_arrives_or_is_taken_back(
    adders: dict[int, Bundle], strategy: str, replicas: int, first: int, second: int
) -> None:
    target = play(adders, strategy, replicas, first, second)
    record = target.require("d1")
    assert (record.rollout, record.candidate, record.mirror, record.replicas) == (None, 0, {}, {})
    assert record.weights in ({1: 100}, {2: 100})
    assert target.replicas == {("d1", record.stable.number): replicas}
    if record.stable.number == 1 and record.last_rollout is not None:
        assert record.last_rollout.outcome == "rolled back"
        assert "killed" in record.last_rollout.events[-1].reason


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_kills_reach_from_the_first_to_the_last_call(adders: dict[int, Bundle], strategy: str) -> None:
    target = play(adders, strategy, 3, None, None)
    assert target.require("d1").weights == {2: 100}
    assert 12 < target.calls <= 90
