"""A supervised process is started anew only when something about it changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlflow_deploy.targets.supervisor import Program, Supervisor

SLEEP = ("-c", "import time; time.sleep(600)")


def pid_of(supervisor: Supervisor) -> int:
    state = supervisor.state("sleep")
    assert state is not None
    return state.pid


def test_another_name_of_the_same_python_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(Path(sys.prefix, "bin", name)) for name in ("python", "python3")]
    supervisor = Supervisor(tmp_path / "local")
    try:
        pids: set[int] = set()
        for name in names:
            monkeypatch.setattr(sys, "executable", name)
            supervisor.add(
                Program(name="sleep", command=(name, *SLEEP), log=tmp_path / "log", stop_seconds=1)
            )
            pids.add(pid_of(supervisor))
        assert len(pids) == 1
        other = (names[0], "-c", "import time; time.sleep(601)")
        supervisor.add(Program(name="sleep", command=other, log=tmp_path / "log", stop_seconds=1))
        assert pid_of(supervisor) not in pids
    finally:
        supervisor.shut_down()
