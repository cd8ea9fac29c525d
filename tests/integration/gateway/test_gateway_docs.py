"""The example of docs/gateway.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.gateway.running import free_port
from tests.integration.gateway.toy import Toy

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "gateway.md"


def test_example(
    tmp_path: Path, toys: list[Toy], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    code = blocks[0]
    for port, real in (("9001", toys[0].port), ("9002", toys[1].port), ("8500", free_port())):
        assert port in code
        code = code.replace(port, str(real))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    names["process"].wait(60)  # type: ignore[attr-defined]
    assert capfd.readouterr().out == "0 0 None\n"
