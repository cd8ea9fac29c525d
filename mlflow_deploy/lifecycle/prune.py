"""Pruning: find what no deployment needs on targets, in the bundle store and among images, and remove it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeploymentBusy
from mlflow_deploy.files import LockHeldError, locked
from mlflow_deploy.lifecycle.steps import Progress
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import Orphan

_SECONDS_PER_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class PruneReport:
    """What was found, and what became of it.

    Attributes:
        orphans: what nothing needs.
        removed: whether they were removed.
        skipped: what was left alone, one line each with the reason.
    """

    orphans: tuple[Orphan, ...]
    removed: bool
    skipped: tuple[str, ...]


def prune(
    targets: Sequence[Target],
    *,
    remove: bool,
    bundles: bool = False,
    images: bool = False,
    older_than_hours: float = 1.0,
    referring: Sequence[Target] = (),
    progress: Progress,
) -> PruneReport:
    """Find, and with `remove` remove, what no deployment needs.

    Deployments that another command works on are left alone, and so are all bundles and images meanwhile.

    Args:
        targets: where to look.
        bundles: also bundles that no deployment refers to.
        images: also images of models, and runtimes below them, that no deployment refers to; target `docker`.
        older_than_hours: bundles and images that are younger stay, since something may be about to use them.
        referring: further targets whose deployments need bundles and images.

    Raises:
        DeployError: a target does not answer. What was removed before is gone.
    """
    everywhere = [*targets, *referring] if bundles or images else []
    for target in everywhere:
        # One that does not answer is to be known before anything is removed.
        target.names()
    found: list[Orphan] = []
    skipped: list[str] = []
    for target in targets:
        for name in target.orphan_names():
            try:
                with target.lock(name):
                    progress(f"Looking at {name} on {target.name}")
                    for orphan in target.orphans(name):
                        if remove:
                            progress(f"Removing {orphan.kind} {orphan.name}")
                            target.remove_orphan(orphan)
                        found.append(orphan)
            except DeploymentBusy as busy:
                skipped.append(busy.text)
    if bundles or images:
        if busy_name := _at_work(state_home()):
            skipped.append(f"Bundles and images stay: a command is working on deployment {busy_name!r}.")
        else:
            needed = {digest for target in everywhere for digest in target.bundles_in_use()}
            if images and any(target.name == "docker" for target in targets):
                found += _images(needed, older_than_hours, remove=remove, progress=progress)
            if bundles:
                found += _bundles(needed, older_than_hours, remove=remove, progress=progress)
    return PruneReport(tuple(found), remove, tuple(skipped))


def _bundles(needed: set[str], hours: float, *, remove: bool, progress: Progress) -> Iterator[Orphan]:
    """Bundles of the store that are not needed."""
    now = time.time()
    for path in sorted((state_home() / "bundles").glob("*")):
        if path.name in needed or now - path.stat().st_mtime < hours * _SECONDS_PER_HOUR:
            continue
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        if remove:
            progress(f"Removing bundle {path.name}")
            # Renamed first, so that a kill in the middle leaves no half of a bundle under its digest.
            gone = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.gone"))
            shutil.rmtree(gone)
        why = "no deployment refers to it"
        yield Orphan(target="", kind="bundle", name=path.name, why=why, bytes=size)


def _images(needed: set[str], hours: float, *, remove: bool, progress: Progress) -> list[Orphan]:
    """Images of models that are not needed, and the runtimes that no other image stands on."""
    from mlflow_deploy.images.catalog import prune_images

    gone = prune_images(
        keep=0, dry_run=not remove, progress=progress, needed=needed, min_age=timedelta(hours=hours)
    )
    return [
        Orphan(target="docker", kind="image", name=each.shown, why=_why_image(each.kind), bytes=each.bytes)
        for each in gone
    ]


def _why_image(kind: str) -> str:
    return "no deployment refers to its bundle" if kind == "model" else "no image stands on it"


def _at_work(home: Path) -> str:
    """Name of a deployment that a command of this state folder works on now, or an empty string."""
    for path in home.glob("*/locks/*.lock"):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except LockHeldError:
                return path.stem
    return ""
