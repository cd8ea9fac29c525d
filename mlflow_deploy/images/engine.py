"""The Docker engine: the connection to it, builds on it, and its errors as ours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from requests.exceptions import RequestException

from mlflow_deploy.errors import DeployError, MissingExtra, StateWriteFailed
from mlflow_deploy.files import LockHeldError, locked, private_folder
from mlflow_deploy.images.context import Files, write_tar
from mlflow_deploy.images.errors import (
    BaseImageNotFound,
    BaseImageUnsuitable,
    BuildFailed,
    EngineFailed,
    EngineNotRunning,
    EnginePermission,
    NoDiskSpace,
    RegistryRefused,
)
from mlflow_deploy.images.install import UNSUITABLE
from mlflow_deploy.images.pip import redacted

Progress = Callable[[str], None]

Engine = Any
"""A `docker.DockerClient`; the package has no types."""

_DEFAULT = "unix:///var/run/docker.sock"
# A step of a build may be silent for as long as it compiles.
_TIMEOUT_SECONDS = 3600
_FULL = "no space left on device"
_NOISE = ("--->", "Removing intermediate ", "Successfully ")
_MADE = re.compile(r"---> ([0-9a-f]{12,64})")
# Longer than any build: what is older was left by one that was killed.
_LEFT_SECONDS = 24 * 3600


@contextlib.contextmanager
def connect() -> Iterator[Engine]:
    """A connection to the engine that DOCKER_HOST or the current Docker context names.

    Raises:
        MissingExtra: the package `docker` is not installed.
        EngineNotRunning: no engine answers.
        EnginePermission: the user may not use its socket.
        EngineFailed: the connection broke, or the engine failed in a way that nothing else names.
    """
    try:
        docker = importlib.import_module("docker")
    except ImportError as error:
        raise MissingExtra("The Docker engine's client", "docker", missing=error.name or "docker") from error
    errors = docker_errors()
    _knock(_address())
    try:
        client = docker.from_env(timeout=_TIMEOUT_SECONDS)
    except (errors.DockerException, RequestException, ValueError) as error:
        raise _no_connection(error) from error
    try:
        yield client
    except errors.APIError as error:
        raise failure("The Docker engine refused", reason(error)) from error
    except (errors.DockerException, RequestException) as error:
        raise _no_connection(error) from error
    finally:
        client.close()


def docker_errors() -> Any:
    """The module `docker.errors`, imported when an engine is used."""
    return importlib.import_module("docker.errors")


def events(stream: Iterable[dict[str, Any]], progress: Progress) -> str:
    """Follow the engine's answer to build, push or pull; returns the error in it, or an empty string."""
    tail: list[str] = []
    failed = ""
    # The stream is read to its end, or its connection would stay open.
    for event in stream:
        if failed:
            continue
        if "error" in event:
            detail = str(event.get("errorDetail", {}).get("message") or event["error"]).strip()
            # A failed command's own last words say more than its exit status.
            words = [line for line in tail if line and not line.startswith(("Step ", *_NOISE))]
            words = [line for line in words[:-3] if _FULL in line.lower()] + words[-3:]
            failed = "; ".join([*words, detail]) if "returned a non-zero code" in detail else detail
            continue
        text = str(event.get("stream") or "").strip()
        if text:
            tail = [*tail[-20:], *text.splitlines()]
            if not text.startswith(_NOISE):
                progress(text.splitlines()[-1])
        elif status := event.get("status"):
            progress(" ".join(str(part) for part in (status, event.get("id"), event.get("progress")) if part))
    return failed


def reason(error: Exception) -> str:
    """The engine's own words in an APIError."""
    return str(getattr(error, "explanation", "") or error).strip()


def failure(what: str, why: str) -> DeployError:
    """The error for an engine's message that only depends on the message."""
    if _FULL in why.lower():
        return NoDiskSpace(what[0].lower() + what[1:], redacted(why))
    return EngineFailed(what, redacted(why))


def build_failure(image: str, base: str, why: str) -> DeployError:
    """The error for a failed build."""
    if _FULL in why.lower():
        return NoDiskSpace(f"building {image}", redacted(why))
    if UNSUITABLE in why:
        return BaseImageUnsuitable(base, why.partition(UNSUITABLE)[2].partition(";")[0])
    if "python3" in why and "executable file not found" in why:
        return BaseImageUnsuitable(base, "it has no python3")
    return BuildFailed(image, redacted(why))


def transfer_failure(image: str, what: str, why: str) -> DeployError:
    """The error for a failed push or pull."""
    if _FULL in why.lower():
        return NoDiskSpace(f"{what}ing {image}", redacted(why))
    return RegistryRefused(image, what, redacted(why))


def find_image(engine: Engine, name: str) -> Any | None:
    """The engine's image of this name, None when there is none."""
    try:
        return engine.images.get(name)
    except docker_errors().ImageNotFound:
        return None


def ensure_base(engine: Engine, image: str, platform: str, progress: Progress, *, newer: bool) -> Any:
    """The base image, pulled when the engine has none for the platform.

    Args:
        newer: ask the registry for a newer one, even when there is one.

    Raises:
        BaseImageNotFound: it cannot be pulled.
    """
    existing = find_image(engine, image)
    fits = existing is not None and platform.partition("/")[2] in ("", existing.attrs["Architecture"])
    if existing is not None and fits and not newer:
        return existing
    progress(f"Pulling {image}")
    repository, tag = split_name(image)
    try:
        options = {"platform": platform} if platform else {}
        why = events(engine.api.pull(repository, tag, stream=True, decode=True, **options), progress)
    except docker_errors().APIError as error:
        why = reason(error)
    if _FULL in why.lower():
        raise NoDiskSpace(f"pulling {image}", redacted(why))
    if why:
        raise BaseImageNotFound(image, redacted(why))
    return engine.images.get(image)


def stands_on(image: Any, below: Any) -> bool:
    """Whether an image consists of all layers of another and its own on top."""
    layers, lower = image.attrs["RootFS"]["Layers"], below.attrs["RootFS"]["Layers"]
    return bool(layers[: len(lower)] == lower)


def split_name(image: str) -> tuple[str, str]:
    """(repository, tag or digest) of an image's name; the tag is `latest` when there is none."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    head, _, tail = image.rpartition(":")
    return (head, tail) if head and "/" not in tail else (image, "latest")


def _no_connection(error: Exception) -> DeployError:
    address = _address()
    text = f"{type(error).__name__}: {error}"
    if "PermissionError" in text or "Permission denied" in text:
        return EnginePermission(address)
    why = "its socket does not exist" if "FileNotFoundError" in text else text
    why = "nothing listens there" if "ConnectionRefused" in text or "Connection refused" in text else why
    return EngineNotRunning(address, redacted(why))


def _knock(address: str) -> None:
    """Try a local engine's socket: the docker package forgets to close it when nobody answers."""
    if not address.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address.removeprefix("unix://"))
        except OSError as error:
            raise _no_connection(error) from error


def _address() -> str:
    """Address of the engine: DOCKER_HOST, or that of the current Docker context."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    context = importlib.import_module("docker.context").ContextAPI.get_current_context()
    return str(context.Host) if context is not None and context.Host else _DEFAULT


# --- builds ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def build_lock(engine: Engine, key: str, what: str, progress: Progress) -> Iterator[None]:
    """Let one build of a key at a time run on the engine from this machine, whatever the state folder.

    Whoever waited finds what the other one has made. Builds from other machines and users do not wait; they
    do no harm to each other, and only do the work twice.

    Args:
        key: digest of what is built.
        what: the image's name, for those who wait.

    Raises:
        StateWriteFailed: the lock cannot be taken.
    """
    with contextlib.ExitStack() as stack:
        path = _lock_file(engine, key)
        try:
            stack.enter_context(locked(path, wait=False, owner=what))
        except LockHeldError as held:
            progress(f"Waiting for another command that builds {held.owner}")
            stack.enter_context(locked(path, wait=True, owner=what))
        except OSError as error:
            raise StateWriteFailed(path, error.strerror or str(error)) from error
        yield


def is_building(engine: Engine, key: str) -> bool:
    """Whether a command of this user on this machine holds the lock of a key."""
    try:
        with locked(_lock_file(engine, key), wait=False):
            return False
    except LockHeldError:
        return True


def build_context(
    engine: Engine,
    name: str,
    files: Files,
    progress: Progress,
    *,
    base: str,
    left: Sequence[str],
    stages: bool,
    platform: str = "",
    network: bool = False,
    arguments: Mapping[str, str] | None = None,
) -> Any:
    """Send a context to the engine and follow the build; returns the image.

    Leaves nothing unnamed of its own, and nothing of builds that were killed more than a day ago. It removes
    nothing that another build could be using, so that builds may meet on an engine.

    Args:
        name: `repository:tag` that the image gets. When another build of the same has got there first, its
            image is the result and this one's is removed.
        base: image that the Dockerfile begins with, for the message of an error.
        left: labels, each as LABEL or LABEL=VALUE, of what killed builds of the same leave.
        stages: the Dockerfile has stages that are thrown away. These are not taken from the engine's cache,
            out of which the build that made them would remove them.
        network: the build may reach out.
        arguments: values that Docker keeps out of the history.

    Raises:
        BuildFailed: a step failed.
        NoDiskSpace: here or on the engine.
    """
    before = find_image(engine, name)
    build = _Build()
    try:
        with tempfile.TemporaryFile() as archive:
            try:
                write_tar(files, archive)
                archive.seek(0)
            except OSError as error:
                raise local_failure(name, error) from error
            stream = engine.api.build(
                fileobj=archive,
                custom_context=True,
                nocache=stages,
                rm=True,
                forcerm=True,
                decode=True,
                platform=platform or None,
                network_mode="default" if network else "none",
                buildargs=dict(arguments or {}),
            )
            why = events(build.follow(stream), progress)
        if why or not build.image:
            raise build_failure(name, base, why or "the engine names no image that came of it")
        _give_name(engine, name, build.image, before)
    except docker_errors().APIError as error:
        raise build_failure(name, base, reason(error)) from error
    finally:
        _remove_steps(engine, build.steps)
        _remove_left(engine, left)
    return engine.images.get(name)


def local_failure(name: str, error: OSError) -> DeployError:
    """The error for a build context that cannot be written on this machine."""
    if error.errno == errno.ENOSPC:
        return NoDiskSpace(f"writing the build context of {name}", str(error))
    return StateWriteFailed(f"the build context of {name}", error.strerror or str(error))


class _Build:
    """What a build makes, read from the engine's answer.

    Attributes:
        steps: ids of the images that it made itself, oldest first; none that came from the cache.
        image: id of the last stage's image; empty until it is done.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.image = ""

    def follow(self, stream: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass the events on and note what they tell."""
        own = False
        for event in stream:
            text = str(event.get("stream") or "").strip()
            if text.startswith("Step "):
                own = " : FROM " not in text
            elif text == "---> Using cache":
                own = False
            elif own and (match := _MADE.fullmatch(text)):
                self.steps.append(match[1])
            self.image = str((event.get("aux") or {}).get("ID", self.image))
            yield event


def _give_name(engine: Engine, name: str, image: str, before: Any | None) -> None:
    """Name an image, unless another build of the same has taken the name since `before` was found."""
    now = find_image(engine, name)
    built = engine.images.get(image)
    if now is None or now.id == getattr(before, "id", None) or now.labels != built.labels:
        engine.api.tag(image, *split_name(name))


def _remove_steps(engine: Engine, steps: Sequence[str]) -> None:
    """Remove the images of a build's steps that nothing stands on and that have no name."""
    for step in reversed(steps):
        image = find_image(engine, step)
        if image is not None and not image.tags:
            # What is below may be a step of another build, so it is not to go along.
            _remove_unless_needed(engine, image.id, keep_below=True)


def _remove_left(engine: Engine, wanted: Sequence[str]) -> None:
    """Remove the images without a name that carry all of these labels and are too old to be a build's."""
    for image in engine.api.images(filters={"dangling": True, "label": list(wanted)}):
        if time.time() - image["Created"] > _LEFT_SECONDS:
            _remove_unless_needed(engine, image["Id"], keep_below=False)


def _remove_unless_needed(engine: Engine, image: str, *, keep_below: bool) -> None:
    try:
        engine.api.remove_image(image, noprune=keep_below)
    except docker_errors().APIError as error:
        # In use below another image or by a container, or gone with the one before it.
        if error.status_code not in (404, 409):
            raise


def _lock_file(engine: Engine, key: str) -> Path:
    """The lock of builds of a key on this engine, by whatever address it is reached."""
    where = str(engine.api.info().get("ID") or _address())
    name = f"build-{hashlib.sha256(f'{where} {key}'.encode()).hexdigest()[:32]}.lock"
    try:
        return private_folder() / name
    except OSError as error:
        raise StateWriteFailed(f"the lock {name}", error.strerror or str(error)) from error
