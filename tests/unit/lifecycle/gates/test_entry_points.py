"""Gates of other packages: found by their entry point once the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.gates.base import GROUP, load_gate
from mlflow_deploy.lifecycle.policy import Policy
from mlflow_deploy.lifecycle.policy_check import problems_of

MODULE = """
from typing import ClassVar
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, passed

class HoursSettings(GateSettings):
    until: int = 18

class Hours(Gate):
    name: ClassVar[str] = "shop-hours"
    settings_type: ClassVar[type[GateSettings]] = HoursSettings

    def check(self, context):
        return passed(f"open until {self.settings.until}")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as an installer leaves it: a module, and metadata that name the entry point."""
    (tmp_path / "shop_gates.py").write_text(MODULE)
    metadata = tmp_path / "shop_gates-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-gates\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nshop-hours = shop_gates:Hours\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_package_brings_a_gate(package: None) -> None:
    gate = load_gate("shop-hours", {"until": 20})
    assert type(gate).__module__ == "shop_gates"
    assert gate.check(None).summary == "open until 20"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="until"):
        load_gate("shop-hours", {"untill": 20})
    policy = "default: {stages: [{name: Shop, gates: {shop-hours: {until: 19}}}]}"
    assert problems_of(Policy.parse(policy, "test")) == []


def test_without_the_package_the_gate_is_a_mistake() -> None:
    policy = "default: {stages: [{name: Shop, gates: [shop-hours]}]}"
    (problem,) = problems_of(Policy.parse(policy, "test"))
    assert "There is no gate 'shop-hours'" in problem
