"""Processes that end with those they were started for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PARENT_DIED = "import os\nfrom mlflow_deploy import processes\nos.getppid = lambda: 1\n"
"""The parent dies after the program has begun and before it asks the kernel."""


@pytest.mark.parametrize(
    "code",
    [
        "import signal; processes.die_with_parent(signal.SIGTERM)",
        "from mlflow_deploy.monitoring import job; job.main(['watch', DATA, '--die-with-parent'])",
        "from mlflow_deploy.monitoring import job; job.main(['round', DATA])",
    ],
)
def test_who_asks_after_its_parent_died_ends_at_once(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{PARENT_DIED}DATA = {str(tmp_path)!r}\n{code}\nprint('it lived on')"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == ""
    assert done.returncode in (-signal.SIGTERM, -signal.SIGKILL)


def test_who_has_a_parent_goes_on() -> None:
    code = "import signal; from mlflow_deploy.processes import *; die_with_parent(signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
