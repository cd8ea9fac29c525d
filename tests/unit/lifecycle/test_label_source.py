"""How often revisions were right, as a rollout is told: asked rarely, and never in the way of the rollout."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import MonitorFailed
from mlflow_deploy.lifecycle import label_source as module
from mlflow_deploy.lifecycle.label_source import label_source
from mlflow_deploy.rollout.quality import Outcomes
from mlflow_deploy.targets.base import Capability
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.memory import MemoryTarget

RECORD = DeploymentRecord(
    name="d1", phase="ready", host="h", port=1, revisions=(), weights={}, created_at="", updated_at=""
)


class Monitored(MemoryTarget):
    """A target whose monitor knows outcomes, or fails."""

    capabilities = MemoryTarget.capabilities | {Capability.MONITORS}

    def __init__(self) -> None:
        super().__init__()
        self.state = "running"
        self.asked: list[Sequence[str]] = []
        self.fails = False

    def monitor_state(self, record: DeploymentRecord) -> str:
        return self.state

    def ask_monitor(self, record: DeploymentRecord, arguments: Sequence[str]) -> bytes:
        self.asked.append(arguments)
        if self.fails:
            raise MonitorFailed("d1", "its container is started again")
        return b'{"1": [9, 1], "2": [3, 7]}'


def test_it_asks_with_the_settings_and_not_at_every_look() -> None:
    target = Monitored()
    spec = parse_spec({"analysis.quality_tolerance": "0.1", "capture.key": "flight"})
    labels = label_source(target, RECORD, spec, print)
    assert labels is not None
    assert labels() == labels() == {1: Outcomes(9, 1), 2: Outcomes(3, 7)}
    [arguments] = target.asked
    assert arguments[0] == "outcomes"
    assert list(arguments[-4:]) == ["--tolerance", "0.1", "--key", "flight"]


def test_a_monitor_that_fails_is_told_once_and_what_was_known_counts_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "_LEAST_PAUSE", 0.0)
    target, said = Monitored(), []
    labels = label_source(target, RECORD, parse_spec({}), said.append)
    assert labels is not None
    known = labels()
    target.fails = True
    assert labels() == labels() == known
    assert len(target.asked) == 3
    [line] = said
    assert "its container is started again" in line


@pytest.mark.parametrize("off", ["no monitors", "no capture", "no capability"])
def test_there_are_no_labels_where_nobody_reads_them(off: str) -> None:
    target = MemoryTarget() if off == "no capability" else Monitored()
    if isinstance(target, Monitored) and off == "no monitors":
        target.state = "off"
    spec = parse_spec({"capture.enabled": "false"} if off == "no capture" else {})
    assert label_source(target, RECORD, spec, print) is None
