"""Locked requirements: resolved once, kept, and installed with hashes ever after."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.files import sha256_file, write_atomic
from mlflow_deploy.images import pip
from mlflow_deploy.images.errors import RequirementsUnresolved
from mlflow_deploy.images.pip import redacted
from mlflow_deploy.images.requirements import Wanted
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]

_LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")
_HEADER = (
    "# Locked by mlflow_deploy for Python {python}, {machine}, {device}. Install with: pip --require-hashes\n"
)


@dataclass(frozen=True)
class Lock:
    """Exact versions with the SHA-256 of the one file of each that is installed.

    Attributes:
        packages: (canonical name, version, SHA-256) sorted by name.
        text: the lock as a requirements file.
    """

    packages: tuple[tuple[str, str, str], ...]
    text: str

    @property
    def digest(self) -> str:
        """`sha256-<hex>` of the text."""
        return "sha256-" + hashlib.sha256(self.text.encode()).hexdigest()

    def version(self, name: str) -> str | None:
        """The locked version of a package, None when it is not in the lock."""
        return next((version for known, version, _ in self.packages if known == name), None)


def lock_requirements(wanted: Wanted, spec: ImageSpec, progress: Progress, *, refresh: bool = False) -> Lock:
    """The lock of the requirements: the user's own, the one kept from an earlier build, or a new one.

    Args:
        refresh: resolve again, for newer versions, although a lock is kept.

    Raises:
        ConfigError: the lock file that the user gave cannot be read.
        RequirementsUnresolved: pip finds no set of versions.
    """
    if spec.lock is not None:
        return read_lock(spec.lock)
    kept = state_home() / "images" / "locks" / f"{_key(wanted, spec)}.txt"
    if kept.is_file() and not refresh:
        return read_lock(kept)
    progress(f"Resolving {len(wanted.lines)} requirements")
    entries = pip.resolve(wanted, spec, torch_index=_torch_index(wanted, spec), progress=progress)
    if _brings_cuda(entries) and spec.device == "cpu" and spec.torch_index and not wanted.torch:
        progress("A package brings torch with CUDA; resolving again with the index of torch for CPUs")
        entries = pip.resolve(wanted, spec, torch_index=True, progress=progress)
    if _brings_cuda(entries) and spec.device == "cpu":
        progress(
            "Warning: the CPU image gets CUDA libraries; set torch_index or wheels to a torch without them"
        )
    header = _HEADER.format(python=spec.python_version, machine=spec.machine, device=spec.device)
    lock = _make_lock(header, (_locked(entry) for entry in entries))
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(kept, lock.text.encode())
    return lock


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        ConfigError: a line is not `name==version --hash=sha256:...`.
    """
    try:
        lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The lock file {path} cannot be read", why=str(error)) from error
    packages = []
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(" ".join(line.split()))
        if match is None:
            raise ConfigError(
                f"The lock file {path} has a line that is not `name==version --hash=sha256:...`", why=line
            )
        packages.append((canonicalize_name(match["name"]), match["version"], match["sha256"]))
    header = "".join(f"{line}\n" for line in lines if line.startswith("# Locked by"))
    return _make_lock(header, packages)


def fetch(lock: Lock, into: Path, spec: ImageSpec, progress: Progress) -> str:
    """Fetch a lock's packages as wheels into a folder; returns the requirements file that installs them.

    Its hashes are those of the wheels, also of the ones that were built here from source.
    """
    path = into.parent / "requirements.lock"
    path.write_text(lock.text)
    into.mkdir(exist_ok=True)
    torch_index = spec.device == "cpu" and lock.version("torch") is not None
    progress(f"Fetching {len(lock.packages)} packages")
    pip.fetch_wheels(path, into, spec, torch_index=torch_index, progress=progress)
    versions = {name: version for name, version, _ in lock.packages}
    lines = []
    for wheel in sorted(into.iterdir()):
        name = canonicalize_name(wheel.name.split("-")[0])
        lines.append(f"{name}=={versions.pop(name)} --hash=sha256:{sha256_file(wheel)}\n")
    if versions:
        raise RequirementsUnresolved(f"pip fetched no wheel of {', '.join(sorted(versions))}")
    return "".join(sorted(lines))


def _make_lock(header: str, packages: Iterable[tuple[str, str, str]]) -> Lock:
    ordered = tuple(sorted(packages))
    body = "".join(f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in ordered)
    return Lock(ordered, header + body)


def _locked(entry: dict[str, Any]) -> tuple[str, str, str]:
    """(name, version, SHA-256) of an entry of pip's report."""
    name, version = canonicalize_name(entry["metadata"]["name"]), str(entry["metadata"]["version"])
    source = entry["download_info"]
    digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
    if digest is None and source["url"].startswith("file:"):
        digest = sha256_file(Path(unquote(urlsplit(source["url"]).path)))
    if digest is None:
        raise RequirementsUnresolved(
            f"{name} {version} from {redacted(source['url'])} has no SHA-256, so it cannot be locked"
        )
    return name, version, str(digest)


def _torch_index(wanted: Wanted, spec: ImageSpec) -> bool:
    return wanted.torch and spec.device == "cpu"


def _brings_cuda(entries: list[dict[str, Any]]) -> bool:
    names = {canonicalize_name(entry["metadata"]["name"]) for entry in entries}
    return "torch" in names and any(name.startswith("nvidia-") for name in names)


def _key(wanted: Wanted, spec: ImageSpec) -> str:
    """What decides a resolution; passwords are no part of it."""
    urls = [spec.index_url, *spec.extra_index_urls]
    parts = [
        spec.python_version, spec.machine, spec.device, spec.torch_index, str(spec.wheels), *spec.pip_args,
        *(redacted(url.get_secret_value()) for url in urls if url), *wanted.lines, "--", *wanted.constraints,
    ]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
