"""Builds images on the engine: the shared runtime when it is missing, the model on top, and nothing twice."""

from __future__ import annotations

import errno
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
from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import locked
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.context import Files, ImagePlan, model_files, plan_image, runtime_files, write_tar
from mlflow_deploy.images.engine import (
    Engine,
    build_failure,
    connect,
    docker_errors,
    ensure_base,
    events,
    find_image,
    reason,
    remove_unnamed,
    split_name,
    stands_on,
    transfer_failure,
)
from mlflow_deploy.images.errors import EngineFailed, ImageNameTaken, ImageNotFound, NoDiskSpace
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
        bytes_above_base: size without the base image; None when the base is not on the engine.
        reused: nothing had to be built.
        runtime_reused: at most the model's own layers had to be built.
        seconds: how long it took.
        sbom: the CycloneDX document inside.
    """

    name: str
    id: str
    context: str
    bundle: str
    runtime: str
    bytes: int
    bytes_above_base: int | None
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
        pull: ask the registry for a newer base image, and build anew when there is one.

    Raises:
        DeployError: nothing was built, and nothing half made is left on the engine.
    """
    begun = time.monotonic()
    with connect() as engine:
        plan = plan_image(bundle, spec, progress, refresh=refresh)
        current_image(engine, plan)
        # Two builds of one runtime would each remove what the other leaves on its way.
        with locked(_lock_file(plan), wait=True, owner=plan.name):
            runtime, runtime_reused = _ensure_runtime(engine, plan, progress, pull=pull)
            image = current_image(engine, plan)
            reused = image is not None and (runtime is None or stands_on(image, runtime))
            if not reused:
                progress(f"Building {plan.name}")
                image = _build(engine, plan, plan.name, model_files(plan), progress)
        assert image is not None
        base = find_image(engine, spec.base)
        return BuiltImage(
            name=plan.name,
            id=str(image.id),
            context=plan.digest,
            bundle=bundle.digest,
            runtime=plan.runtime,
            bytes=int(image.attrs["Size"]),
            bytes_above_base=int(image.attrs["Size"] - base.attrs["Size"]) if base is not None else None,
            reused=reused,
            runtime_reused=runtime_reused,
            seconds=time.monotonic() - begun,
            sbom=read_sbom(engine, plan.name),
        )


def push_image(name: str, progress: Progress) -> str:
    """Push an image with the credentials of Docker's own store; returns its digest in the registry.

    Raises:
        ImageNotFound: the engine has no such image.
        RegistryRefused: the registry does not take it.
    """
    repository, tag = split_name(name)
    with connect() as engine:
        if find_image(engine, name) is None:
            raise ImageNotFound(name)
        progress(f"Pushing {name}")
        try:
            why = events(engine.api.push(repository, tag, stream=True, decode=True), progress)
        except docker_errors().APIError as error:
            why = reason(error)
        if why:
            raise transfer_failure(name, "push", why)
        digests = engine.images.get(name).attrs["RepoDigests"]
        return next((str(each) for each in digests if each.startswith(f"{repository}@")), "")


def pull_image(name: str, progress: Progress) -> None:
    """Pull an image of ours with the credentials of Docker's own store.

    Raises:
        RegistryRefused: the registry does not give it.
        ImageNotFound: what came is no image of ours.
    """
    repository, tag = split_name(name)
    with connect() as engine:
        progress(f"Pulling {name}")
        try:
            why = events(engine.api.pull(repository, tag, stream=True, decode=True), progress)
        except docker_errors().APIError as error:
            why = reason(error)
        if why:
            raise transfer_failure(name, "pull", why)
        if engine.images.get(name).labels.get(labels.KIND) != "model":
            raise ImageNotFound(f"a model under the name {name}")


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
    try:
        document: dict[str, Any] = json.loads(read_file(engine, image, layout.SBOM))
    except (docker_errors().APIError, ValueError) as error:
        raise EngineFailed(f"The bill of materials of {image} cannot be read", reason(error)) from error
    return document


# --- steps -------------------------------------------------------------------------------------------------


def _lock_file(plan: ImagePlan) -> Path:
    folder = state_home() / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StateWriteFailed(folder, error.strerror or str(error)) from error
    return folder / f"{plan.runtime_digest}.lock"


def current_image(engine: Engine, plan: ImagePlan) -> Any | None:
    """The image, when it was built from this very context.

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
    """(the runtime's image, whether it was there already).

    None stands for a runtime that is not needed, because the model's image exists and came without it.
    """
    spec = plan.spec
    base = find_image(engine, spec.base)
    if pull:
        base = ensure_base(engine, spec.base, spec.platform, progress, newer=True)
    existing = find_image(engine, plan.runtime)
    if existing is not None and existing.labels.get(labels.KIND) != "runtime":
        raise ImageNameTaken(plan.runtime)
    if existing is not None and (base is None or stands_on(existing, base)):
        return existing, True
    image = current_image(engine, plan)
    if existing is None and image is not None and (base is None or stands_on(image, base)):
        return None, True
    ensure_base(engine, spec.base, spec.platform, progress, newer=False)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        try:
            files = runtime_files(plan, Path(work), progress)
        except OSError as error:
            raise _local_failure(plan.runtime, error) from error
        progress(f"Building the runtime {plan.runtime}")
        return _build(engine, plan, plan.runtime, files, progress), False


def _build(engine: Engine, plan: ImagePlan, name: str, files: Files, progress: Progress) -> Any:
    """Send a context to the engine and follow the build; removes what it leaves on its way."""
    spec = plan.spec
    done = False
    try:
        with tempfile.TemporaryFile() as archive:
            write_tar(files, archive)
            archive.seek(0)
            stream = engine.api.build(
                fileobj=archive,
                custom_context=True,
                tag=name,
                rm=True,
                forcerm=True,
                decode=True,
                platform=spec.platform or None,
                # Everything a build needs is in its context; only apt has to reach out.
                network_mode="default" if spec.system_packages else "none",
                buildargs=_proxies(spec),
            )
            why = events(stream, progress)
        if why:
            raise build_failure(name, spec.base, why)
        done = True
    except docker_errors().APIError as error:
        raise build_failure(name, spec.base, reason(error)) from error
    except OSError as error:
        raise _local_failure(name, error) from error
    finally:
        _sweep(engine, plan, ("build",) if done else ("build", "runtime"))
    return engine.images.get(name)


def _proxies(spec: ImageSpec) -> dict[str, str]:
    """Build arguments that Docker keeps out of an image's history."""
    if not spec.system_packages:
        return {}
    secrets = {"http_proxy": spec.http_proxy, "https_proxy": spec.https_proxy}
    proxies = {name: value.get_secret_value() for name, value in secrets.items() if value}
    return {**proxies, **({"no_proxy": spec.no_proxy} if spec.no_proxy else {})}


def _sweep(engine: Engine, plan: ImagePlan, kinds: tuple[str, ...]) -> None:
    """Remove unnamed images that a build of this runtime, or on it, has left."""
    for kind in kinds:
        remove_unnamed(engine, f"{labels.RUNTIME}={plan.runtime_digest}", f"{labels.KIND}={kind}")


def _local_failure(name: str, error: OSError) -> Exception:
    if error.errno == errno.ENOSPC:
        return NoDiskSpace(f"writing the build context of {name}", str(error))
    return StateWriteFailed(f"the build context of {name}", error.strerror or str(error))
