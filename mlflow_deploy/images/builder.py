"""Builds images on the engine: the shared runtime when it is missing, the model on top, and nothing twice."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import DeployError
from mlflow_deploy.files import locked
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.context import (
    Files,
    ImagePlan,
    model_files,
    plan_image,
    runtime_files,
    write_tar,
)
from mlflow_deploy.images.engine import Engine, build_failure, connect, ensure_base, events, reason
from mlflow_deploy.images.errors import EngineFailed, ImageNameTaken
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuiltImage:
    """An image that is ready to run.

    Attributes:
        name: `repository:tag`.
        id: the engine's id, `sha256:<hex>`.
        context: digest of the build context.
        bundle: digest of the bundle inside.
        runtime: name of the shared runtime below it.
        bytes: size of the whole image.
        bytes_above_base: size without the base image; 0 when the base is not on the engine.
        reused: nothing had to be built.
        runtime_reused: only the model's layers had to be built.
        seconds: how long it took.
        sbom: the CycloneDX document inside.
    """

    name: str
    id: str
    context: str
    bundle: str
    runtime: str
    bytes: int
    bytes_above_base: int
    reused: bool
    runtime_reused: bool
    seconds: float
    sbom: dict[str, Any]


def build_image(
    bundle: Bundle, spec: ImageSpec, progress: Progress, *, refresh: bool = False, pull: bool = False
) -> BuiltImage:
    """Build the image of a bundle, unless the engine has it.

    Args:
        refresh: resolve the requirements again, for newer versions.
        pull: ask the registry for a newer base image.

    Raises:
        DeployError: nothing was built, and nothing half made is left on the engine.
    """
    begun = time.monotonic()
    plan = plan_image(bundle, spec, progress, refresh=refresh)
    with connect() as engine:
        existing = _current(engine, plan)
        if existing is not None and not pull:
            progress(f"{plan.name} exists already")
            return _built(engine, plan, existing, begun, reused=True, runtime_reused=True)
        runtime, runtime_reused = _ensure_runtime(engine, plan, progress, pull=pull)
        existing = _current(engine, plan)
        if existing is None or existing.labels.get(labels.RUNTIME_ID) != runtime.id:
            more = {labels.RUNTIME_ID: runtime.id, labels.BASE_ID: _base_id(engine, spec.base)}
            progress(f"Building {plan.name}")
            existing = _build(engine, plan, plan.name, model_files(plan, more), progress)
            return _built(engine, plan, existing, begun, reused=False, runtime_reused=runtime_reused)
        return _built(engine, plan, existing, begun, reused=True, runtime_reused=runtime_reused)


def find_image(engine: Engine, name: str) -> Any | None:
    """The engine's image of this name, None when there is none."""
    from docker.errors import ImageNotFound

    try:
        return engine.images.get(name)
    except ImageNotFound:
        return None


def read_file(engine: Engine, image: str, path: str) -> bytes:
    """A file's content in an image, read without starting it."""
    container = engine.api.create_container(image, command=["none"], labels={labels.KIND: "build"})["Id"]
    try:
        stream, _ = engine.api.get_archive(container, path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            assert member is not None
            return member.read()
    finally:
        engine.api.remove_container(container, force=True)


def read_sbom(engine: Engine, image: str) -> dict[str, Any]:
    """The bill of materials inside an image of ours.

    Raises:
        EngineFailed: the image has none.
    """
    from docker.errors import APIError

    try:
        document: dict[str, Any] = json.loads(read_file(engine, image, layout.SBOM))
    except (APIError, ValueError) as error:
        raise EngineFailed(f"The bill of materials of {image} cannot be read", reason(error)) from error
    return document


def _current(engine: Engine, plan: ImagePlan) -> Any | None:
    """The image when it was built from this very context.

    Raises:
        ImageNameTaken: something that is not ours has its name.
    """
    image = find_image(engine, plan.name)
    if image is None:
        return None
    if image.labels.get(labels.KIND) != "model":
        raise ImageNameTaken(plan.name)
    return image if image.labels.get(labels.CONTEXT) == plan.digest else None


def _ensure_runtime(engine: Engine, plan: ImagePlan, progress: Progress, *, pull: bool) -> tuple[Any, bool]:
    """(the runtime's image, whether it was there already)."""
    from docker.errors import ImageNotFound

    folder = state_home() / "images"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two builds of one runtime would each remove what the other leaves on its way.
    with locked(folder / f"{plan.runtime_digest}.lock", wait=True):
        if pull:
            with contextlib.suppress(ImageNotFound):
                _refresh_base(engine, plan.spec, progress)
        existing = find_image(engine, plan.runtime)
        if existing is not None and existing.labels.get(labels.KIND) != "runtime":
            raise ImageNameTaken(plan.runtime)
        base = _base_id(engine, plan.spec.base)
        if existing is not None and (not base or _stands_on(engine, existing, plan.spec.base)):
            return existing, True
        ensure_base(engine, plan.spec.base, plan.spec.platform, progress)
        progress(f"Building the runtime {plan.runtime}")
        with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
            files = runtime_files(plan, Path(work), progress)
            return _build(engine, plan, plan.runtime, files, progress), False


def _refresh_base(engine: Engine, spec: ImageSpec, progress: Progress) -> None:
    raise NotImplementedError


def _build(engine: Engine, plan: ImagePlan, name: str, files: Files, progress: Progress) -> Any:
    """Send a context to the engine and follow the build; removes what it leaves on its way."""
    raise NotImplementedError


def _stands_on(engine: Engine, image: Any, base: str) -> bool:
    raise NotImplementedError


def _base_id(engine: Engine, base: str) -> str:
    image = find_image(engine, base)
    return str(image.id) if image is not None else ""


def _built(
    engine: Engine, plan: ImagePlan, image: Any, begun: float, *, reused: bool, runtime_reused: bool
) -> BuiltImage:
    raise NotImplementedError


__all__ = ["BuiltImage", "DeployError", "build_image", "build_failure", "events"]
