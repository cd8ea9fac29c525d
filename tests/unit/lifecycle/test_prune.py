"""Pruning finds what nothing needs on a real local target, and leaves everything else alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from mlflow_deploy.config import state_home
from mlflow_deploy.lifecycle.prune import prune
from mlflow_deploy.lifecycle.steps import now
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord
from mlflow_deploy.targets.local import LocalTarget
from mlflow_deploy.targets.supervisor import Program
from tests.unit.lifecycle.conftest import quiet


def record(bundle: str) -> DeploymentRecord:
    """Deployment d1 whose revision 2 has the traffic."""
    revision = RevisionRecord(
        number=2, bundle=bundle, format="onnx", model_uri="m", resolved_uri="m", model_name="",
        model_version="", fallback="", parity="", spec={}, created_at=now(),
    )  # fmt: skip
    return DeploymentRecord(
        name="d1", phase="ready", host="127.0.0.1", port=8500, revisions=(revision,), weights={2: 100},
        created_at=now(), updated_at=now(),
    )  # fmt: skip


def old(path: Path) -> Path:
    """A folder with a file of two kilobytes, made two hours ago."""
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * 2000)
    os.utime(path, (time.time() - 7200,) * 2)
    return path


@pytest.fixture
def filled(target: LocalTarget) -> LocalTarget:
    """A target with deployment d1, and with what killed commands leave."""
    used = old(state_home() / "bundles" / "sha256-used")
    target.write_record(record(used.name))
    folder = target.home / "local" / "deployments"
    for name in ("r1-1.json", "r2-1.json"):
        (folder / "d1" / name).write_text("{}")
    (folder / "d1" / "logs").mkdir()
    (folder / "d1" / "logs" / "r1-1.log").write_text("line")
    target.write_record(msgspec.structs.replace(record(used.name), name="half", phase="creating"))
    old(target.home / "local" / "trash" / "gone.1.2")
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    for name in ("ghost.r1-1", "d1.r1-1", "d1.r2-1"):
        target.supervisor.add(Program(name=name, command=sleep, log=folder / "d1" / "x.log", stop_seconds=2))
    return target


def test_shows_first_and_removes_what_it_showed(filled: LocalTarget) -> None:
    folder = filled.home / "local"
    shown = prune([filled], remove=False, progress=quiet)
    assert [(each.kind, Path(each.name).name) for each in shown.orphans] == [
        ("process", "d1.r1-1"),
        ("file", "r1-1.json"),
        ("file", "r1-1.log"),
        ("process", "ghost.r1-1"),
        ("folder", "gone.1.2"),
        ("folder", "half"),
    ]
    assert not shown.removed
    assert len(filled.supervisor.program_names()) == 3
    done = prune([filled], remove=True, progress=quiet)
    assert (done.orphans, done.removed) == (shown.orphans, True)
    assert filled.supervisor.program_names() == ["d1.r2-1"]
    assert [path.name for path in (folder / "deployments").iterdir()] == ["d1"]
    assert sorted(path.name for path in (folder / "deployments" / "d1").glob("r*")) == ["r2-1.json"]
    assert list((folder / "trash").iterdir()) == []
    assert filled.require("d1").weights == {2: 100}
    assert prune([filled], remove=True, progress=quiet).orphans == ()


def test_bundles_go_only_when_asked_for_unused_and_old(target: LocalTarget) -> None:
    store = state_home() / "bundles"
    target.write_record(record(old(store / "sha256-used").name))
    old(store / "sha256-unused")
    (store / "sha256-new").mkdir()
    assert prune([target], remove=True, progress=quiet).orphans == ()
    report = prune([], referring=[target], remove=True, bundles=True, progress=quiet)
    assert [(each.kind, each.name, each.bytes) for each in report.orphans] == [
        ("bundle", "sha256-unused", 2000)
    ]
    assert sorted(path.name for path in store.iterdir()) == ["sha256-new", "sha256-used"]
    report = prune([target], remove=True, bundles=True, older_than_hours=0, progress=quiet)
    assert [each.name for each in report.orphans] == ["sha256-new"]


def test_what_a_command_works_on_is_left_alone(target: LocalTarget) -> None:
    target.write_record(msgspec.structs.replace(record("sha256-x"), name="half", phase="creating"))
    old(state_home() / "bundles" / "sha256-unused")
    taken, done = threading.Event(), threading.Event()

    def work() -> None:
        with target.lock("half"):
            taken.set()
            done.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert taken.wait(60)
        report = prune([target], remove=True, bundles=True, progress=quiet)
    finally:
        done.set()
        worker.join()
    assert report.orphans == ()
    assert len(report.skipped) == 2
    assert "Another command is working on deployment 'half'" in report.skipped[0]
    assert "Bundles and images stay" in report.skipped[1]
    assert len(prune([target], remove=True, bundles=True, progress=quiet).orphans) == 2
