"""The Docker engine: the connection to it, and its errors as ours."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from requests.exceptions import RequestException

from mlflow_deploy.errors import DeployError, MissingExtra
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


def remove_unnamed(engine: Engine, *wanted: str) -> None:
    """Remove the images without a name that carry all of these labels, each given as LABEL=VALUE."""
    for image in engine.api.images(filters={"dangling": True, "label": list(wanted)}):
        try:
            engine.api.remove_image(image["Id"])
        except docker_errors().APIError as error:
            # In use below another image, or gone with the one before it.
            if error.status_code not in (404, 409):
                raise
