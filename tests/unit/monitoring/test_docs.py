"""The example of docs/monitoring.md runs and prints what it says."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(block, "docs/monitoring.md", "exec"), {})
    assert capsys.readouterr().out.startswith("2 of 2 columns drifted: age, plan\n")
    assert "# 2 of 2 columns drifted: age, plan" in block
