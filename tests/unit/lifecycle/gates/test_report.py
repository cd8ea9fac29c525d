"""The report of gates: what counts, and the XML that CI systems read."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.gates.base import load_gate
from mlflow_deploy.lifecycle.gates.report import GateReport, GateResult


def result(name: str, outcome: str, optional: bool = False) -> GateResult:
    return GateResult(name, outcome, optional, f"<{name}> \x07told", {"n": 1}, 0.5)  # type: ignore[arg-type]


def report(*results: GateResult) -> GateReport:
    return GateReport("models:/m/1", "m", "1", "Production", "2026-03-03T00:00:00+00:00", "", results)


def test_skipped_is_failed_unless_optional() -> None:
    assert report(result("a", "passed"), result("b", "skipped", optional=True)).ok
    kept = report(result("a", "passed"), result("b", "skipped"), result("c", "failed", optional=True))
    assert not kept.ok
    assert [each.name for each in kept.failures] == ["b"]
    assert kept.reason.startswith("gate b skipped: ")
    assert json.loads(json.dumps(kept.to_dict()))["results"][1]["ok"] is False


def test_junit() -> None:
    text = report(
        result("a", "passed"), result("b", "failed"), result("c", "skipped"), result("d", "failed", True)
    ).to_junit()
    suite = ElementTree.fromstring(text)[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    cases = {case.get("name"): [part.tag for part in case] for case in suite}
    assert cases == {"a": ["system-out"], "b": ["failure"], "c": ["failure"], "d": ["skipped"]}
    assert suite[1][0].get("message") == "<b> told"


def test_gates_are_found_by_name_and_by_path() -> None:
    assert load_gate("smoke", {}).name == "smoke"
    assert load_gate("tests.unit.lifecycle.gates.own:NoFriday", {"day": 5}).name == "no-friday"
    with pytest.raises(ConfigError, match="no class derived from"):
        load_gate("json:dumps", {})
    with pytest.raises(ConfigError, match="day cannot be used"):
        load_gate("tests.unit.lifecycle.gates.own:NoFriday", {"day": 9})
