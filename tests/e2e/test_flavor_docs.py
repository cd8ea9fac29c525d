"""The examples of docs/flavors.md and docs/sealing.md run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_blocks_run_as_printed(home: Path, tmp_path: Path) -> None:
    blocks = [
        block
        for name in ("flavors.md", "sealing.md")
        for block in BLOCK.findall((DOCS / name).read_text("utf-8"))
    ]
    programs = [text for kind, text in blocks if kind == "python"]
    commands = [
        line.removeprefix("$ ")
        for kind, text in blocks
        if kind == "console"
        for line in text.splitlines()
        if line.startswith("$ ")
    ]
    assert len(programs) >= 7
    assert len(commands) >= 5
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")},
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in (
        # One program: later examples go on from earlier ones.
        [sys.executable, "-c", "\n".join(programs)],
        *(["bash", "-c", line] for line in commands),
    ):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
