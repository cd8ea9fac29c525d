"""The images that are there: list, inspect, and remove what nobody needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels
from mlflow_deploy.images.builder import current_image, read_sbom
from mlflow_deploy.images.context import plan_image
from mlflow_deploy.images.engine import (
    Engine,
    connect,
    docker_errors,
    find_image,
    is_building,
    reason,
    stands_on,
)
from mlflow_deploy.images.errors import EngineFailed, ImageNotFound
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]

_LEFTOVER_AGE = timedelta(hours=1)


@dataclass(frozen=True)
class ImageStatus:
    """An image of ours on the engine.

    Attributes:
        names: its `repository:tag`s; empty when a newer image took its name.
        kind: `model`, `runtime`, or `build` for what a killed build left.
        created: when it was built, ISO 8601.
        bytes: size of the whole image.
        in_use: a container, running or not, was made from it.
        labels: all labels.
    """

    id: str
    names: tuple[str, ...]
    kind: str
    created: str
    bytes: int
    in_use: bool
    labels: dict[str, str]

    def label(self, key: str) -> str:
        """The value of a label, empty when it is not there."""
        return self.labels.get(key, "")

    @property
    def shown(self) -> str:
        """Its name for people."""
        return self.names[0] if self.names else self.id[7:19]


def list_images() -> list[ImageStatus]:
    """All images with a model, newest first."""
    with connect() as engine:
        return [status for status, _ in _ours(engine) if status.kind == "model"]


def inspect_images(what: str) -> list[dict[str, Any]]:
    """Everything about the images of a model URI, or the one of a name: labels, layers, bill of materials.

    Args:
        what: `repository:tag`, an image's id, or the resolved URI of a model version.

    Raises:
        ImageNotFound: there is none.
    """
    with connect() as engine:
        named = find_image(engine, what) if ":/" not in what and not what.startswith("/") else None
        wanted = named.id if named is not None else None
        found = [
            (status, image)
            for status, image in _ours(engine)
            if status.kind == "model" and (image.id == wanted or status.label(labels.MODEL_URI) == what)
        ]
        if not found:
            raise ImageNotFound(what)
        return [
            {
                "id": status.id,
                "names": list(status.names),
                "created": status.created,
                "bytes": status.bytes,
                "in_use": status.in_use,
                "platform": f"{image.attrs['Os']}/{image.attrs['Architecture']}",
                "user": image.attrs["Config"]["User"],
                "labels": status.labels,
                "layers": image.attrs["RootFS"]["Layers"],
                "sbom": read_sbom(engine, image.id),
            }
            for status, image in found
        ]


def image_status(bundle: Bundle, spec: ImageSpec, progress: Progress) -> dict[str, str]:
    """What building the image of a bundle would do: `name`, `action` and `runtime`, each reuse or build.

    Builds nothing; the requirements are resolved, as a build would.

    Raises:
        DeployError: the requirements cannot be resolved, or another's image has the name.
    """
    plan = plan_image(bundle, spec, progress)
    with connect() as engine:
        built = current_image(engine, plan) is not None
        runtime = built or find_image(engine, plan.runtime) is not None
    return {
        "name": plan.name,
        "action": "reuse" if built else "build",
        "runtime": "reuse" if runtime else "build",
    }


def prune_images(
    *,
    keep: int,
    dry_run: bool,
    progress: Progress,
    model: str = "",
    needed: Collection[str] | None = None,
    min_age: timedelta = timedelta(0),
) -> list[ImageStatus]:
    """Remove images that nobody needs; returns them.

    That is: of each model all but the newest `keep` images, runtimes that no remaining image stands on, and
    what killed builds left. An image that a container was made from always stays, and so does the runtime of
    a build that goes on.

    Args:
        keep: how many images of each model stay.
        dry_run: remove nothing.
        model: only images of this registered model or model URI, and their runtimes.
        needed: digests of bundles whose images stay while all others go; None = `keep` decides.
        min_age: images of models, and runtimes, that are younger stay.
    """
    with connect() as engine:
        if not dry_run:
            _remove_left_containers(engine)
        everything = [pair for pair in _ours(engine) if not model or _concerns(pair[0], model)]
        models = [status for status, _ in everything if status.kind == "model"]
        useless = _useless_models(models, keep, needed)
        useless = [status for status in useless if _age(status) >= min_age]
        gone = {status.id for status in useless}
        below = {status.label(labels.RUNTIME) for status in useless}
        staying = [each for status, each in _ours(engine) if status.kind == "model" and each.id not in gone]
        for status, image in everything:
            if status.kind not in ("runtime", "build") or (
                model and status.label(labels.RUNTIME) not in below
            ):
                continue
            stays = status.in_use or any(stands_on(each, image) for each in staying)
            if not stays and _is_leftover(engine, status, min_age):
                useless.append(status)
        if not dry_run:
            for status in useless:
                progress(f"Removing {status.shown}")
                _remove(engine, status)
        return useless


def _concerns(status: ImageStatus, model: str) -> bool:
    return status.kind != "model" or model in (
        status.label(labels.MODEL_NAME),
        status.label(labels.MODEL_URI),
    )


def _useless_models(
    models: list[ImageStatus], keep: int, needed: Collection[str] | None
) -> list[ImageStatus]:
    """Images beyond the newest `keep` of each model, and those that lost their name, that are not in use."""
    if needed is not None:
        return [each for each in models if not each.in_use and each.label(labels.BUNDLE) not in needed]
    by_model: dict[str, list[ImageStatus]] = defaultdict(list)
    useless = []
    for status in models:
        if status.names:
            by_model[status.label(labels.MODEL_NAME) or status.label(labels.MODEL_URI)].append(status)
        elif not status.in_use:
            useless.append(status)
    for newest_first in by_model.values():
        useless += [status for status in newest_first[keep:] if not status.in_use]
    return useless


def _is_leftover(engine: Engine, status: ImageStatus, min_age: timedelta) -> bool:
    """Whether no build that runs now makes it or is about to build on it."""
    if not status.names:
        return _age(status) > _LEFTOVER_AGE
    return _age(status) >= min_age and not is_building(engine, status.label(labels.RUNTIME))


def _age(status: ImageStatus) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(status.created)


def _remove(engine: Engine, status: ImageStatus) -> None:
    for name in status.names or (status.id,):
        try:
            engine.api.remove_image(name)
        except docker_errors().ImageNotFound:
            # It went with an image that stood on it.
            continue
        except docker_errors().APIError as error:
            raise EngineFailed(f"The image {name} cannot be removed", reason(error)) from error


def _remove_left_containers(engine: Engine) -> None:
    """Remove containers that killed commands made to read a file; they were never started."""
    for container in engine.containers.list(all=True, filters={"label": f"{labels.KIND}=build"}):
        made = _time(container.attrs["Created"])
        if container.status == "created" and datetime.now(UTC) - made > _LEFTOVER_AGE:
            container.remove(force=True)


def _ours(engine: Engine) -> list[tuple[ImageStatus, Any]]:
    """All images of ours, newest first."""
    used = {container["ImageID"] for container in engine.api.containers(all=True)}
    found = []
    for image in engine.images.list(filters={"label": labels.KIND}):
        status = ImageStatus(
            id=str(image.id),
            names=tuple(image.tags),
            kind=str(image.labels[labels.KIND]),
            created=_time(image.attrs["Created"]).isoformat(timespec="microseconds"),
            bytes=int(image.attrs["Size"]),
            in_use=image.id in used,
            labels=dict(image.labels),
        )
        found.append((status, image))
    return sorted(found, key=lambda pair: pair[0].created, reverse=True)


def _time(text: str) -> datetime:
    """The engine's time, which has nanoseconds that Python does not read."""
    head, _, tail = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{tail[:6].ljust(6, '0')}").replace(tzinfo=UTC)
