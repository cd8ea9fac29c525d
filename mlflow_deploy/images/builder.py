"""Builds images on the engine: the shared runtime when it is missing, the model on top, and nothing twice."""

from __future__ import annotations

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
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.context import ImagePlan, model_files, plan_image, runtime_files
from mlflow_deploy.images.engine import (
    Engine,
    build_context,
    build_lock,
    connect,
    docker_errors,
    ensure_base,
    events,
    find_image,
    local_failure,
    reason,
    split_name,
    stands_on,
    transfer_failure,
)
from mlflow_deploy.images.errors import EngineFailed, ImageNameTaken, ImageNotFound
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
        with build_lock(engine, plan.runtime_digest, plan.name, progress):
            runtime, runtime_reused = _ensure_runtime(engine, plan, progress, pull=pull)
            image = current_image(engine, plan)
            reused = image is not None and (runtime is None or stands_on(image, runtime))
            if not reused:
                progress(f"Building {plan.name}")
                image = build_context(
                    engine, plan.name, model_files(plan), progress,
                    base=spec.base, left=_left(plan), stages=False, platform=spec.platform,
                )  # fmt: skip
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
            raise local_failure(plan.runtime, error) from error
        progress(f"Building the runtime {plan.runtime}")
        # Everything a build needs is in its context; only apt has to reach out.
        built = build_context(
            engine, plan.runtime, files, progress,
            base=spec.base, left=_left(plan), stages=True, platform=spec.platform,
            network=bool(spec.system_packages), arguments=_proxies(spec),
        )  # fmt: skip
        return built, False


def _proxies(spec: ImageSpec) -> dict[str, str]:
    """Build arguments that Docker keeps out of an image's history."""
    if not spec.system_packages:
        return {}
    secrets = {"http_proxy": spec.http_proxy, "https_proxy": spec.https_proxy}
    proxies = {name: value.get_secret_value() for name, value in secrets.items() if value}
    return {**proxies, **({"no_proxy": spec.no_proxy} if spec.no_proxy else {})}


def _left(plan: ImagePlan) -> tuple[str, ...]:
    """The labels of what a killed build of this runtime, or on it, leaves."""
    return (labels.KIND, f"{labels.RUNTIME}={plan.runtime_digest}")
