"""What killed commands left on target `local`: processes and files that no record wants."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlflow_deploy.targets.base_records import DeploymentRecord, Orphan
from mlflow_deploy.targets.supervisor import Supervisor

_OF_REVISION = re.compile(r"r([0-9]+)\b")
_HALF_MADE = "a command that was killed left it half made or half removed"


def left_names(folder: Path, supervisor: Supervisor) -> set[str]:
    """Deployments that something was left of outside of their own folder."""
    trash = folder / "trash"
    things = [*supervisor.program_names(), *(path.name for path in trash.glob("*"))]
    return {thing.partition(".")[0] for thing in things}


def find_orphans(
    folder: Path, supervisor: Supervisor, name: str, record: DeploymentRecord | None
) -> Iterator[Orphan]:
    """Processes, folders and files under a deployment's name that nothing needs.

    Args:
        folder: the target's folder.
        record: of the deployment, in whatever phase; None when there is none.
    """
    ready = record if record is not None and record.phase == "ready" else None
    for program in supervisor.program_names():
        if program.partition(".")[0] == name and (why := _unwanted(program, ready)):
            yield Orphan(target="local", kind="process", name=program, deployment=name, why=why)
    for path in (folder / "trash").glob(f"{name}.*"):
        yield _file(path, name, "a command that removed its deployment was killed")
    own = folder / "deployments" / name
    if ready is None:
        if own.is_dir():
            yield _file(own, name, _HALF_MADE)
        return
    known = {revision.number for revision in ready.revisions}
    for path in [*own.glob("r[0-9]*.json"), *own.glob("logs/r[0-9]*.log*")]:
        number = _revision(path.name)
        if number is not None and number not in known:
            yield _file(path, name, f"there is no revision {number} any more")


def remove_orphan(folder: Path, supervisor: Supervisor, orphan: Orphan) -> None:
    """Stop a process, or remove a folder or file; one that is gone is no error."""
    if orphan.kind == "process":
        supervisor.remove(orphan.name)
        return
    path = Path(orphan.name)
    if path.is_dir():
        # Renamed first, so that a kill in the middle leaves no half of a deployment under its name.
        trash = folder / "trash" / f"{orphan.deployment}.orphan"
        if path.parent != trash.parent:
            trash.parent.mkdir(exist_ok=True, mode=0o700)
            shutil.rmtree(trash, ignore_errors=True)
            path = path.rename(trash)
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)


def forget_files(folder: Path, name: str, number: int) -> None:
    """Remove settings and logs of a revision."""
    own = folder / "deployments" / name
    for path in [*own.glob(f"r{number}-*.json"), *own.glob(f"logs/r{number}-*.log*")]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def folder_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(_sizes(path.rglob("*")))


def _sizes(paths: Iterable[Path]) -> Iterator[int]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat().st_size


def _file(path: Path, name: str, why: str) -> Orphan:
    kind = "folder" if path.is_dir() else "file"
    return Orphan(
        target="local", kind=kind, name=str(path), deployment=name, why=why, bytes=folder_bytes(path)
    )


def _unwanted(program: str, record: DeploymentRecord | None) -> str:
    """Why a process shall not run, or an empty string."""
    part = program.partition(".")[2]
    if record is None:
        return "its deployment has no record"
    number = _revision(part)
    if number is None:
        return "its deployment has no gateway" if part == "gateway" and record.gateway == "none" else ""
    if number in (*record.wanted, *record.kept, record.candidate):
        return ""
    return f"revision {number} has no traffic"


def _revision(text: str) -> int | None:
    found = _OF_REVISION.match(text)
    return int(found[1]) if found else None
