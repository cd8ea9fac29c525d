"""Atomic writes and locks hold under a full disk, a crash and a second process."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_deploy.files import LockHeldError, locked, publish_folder, write_atomic


def test_write_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_publishing_what_is_there_already_keeps_the_first(tmp_path: Path) -> None:
    for round_number in range(2):
        staging = tmp_path / f"staging{round_number}"
        (staging / "sub").mkdir(parents=True)
        (staging / "sub" / "file").write_text("same")
        publish_folder(staging, tmp_path / "final")
        assert not staging.exists()
    assert (tmp_path / "final" / "sub" / "file").read_text() == "same"


def test_lock_is_held_against_other_processes_and_freed_by_their_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from mlflow_deploy.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False, owner='the other'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LockHeldError) as caught, locked(path, wait=False):
        pytest.fail("the lock was taken twice")
    assert caught.value.owner == "the other"
    other.kill()
    other.wait()
    other.stdout.close()
    with locked(path, wait=False):
        pass
