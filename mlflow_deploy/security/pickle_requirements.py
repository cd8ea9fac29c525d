"""What must be installed to load a pickle-based model: read from the pickles, not guessed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from mlflow_deploy.security.pickle_globals import Global, is_pickle_file, pickle_globals


@dataclass(frozen=True)
class PickleNeeds:
    """What the pickles of a model take from elsewhere.

    Attributes:
        globals: every name that loading imports, sorted.
        requirements: pip requirement lines of the packages that provide them, pinned to what is installed here.
        unprovided: modules that no installed package provides: code of the user that must come with the model.
    """

    globals: tuple[Global, ...]
    requirements: tuple[str, ...]
    unprovided: tuple[str, ...]


def needs_of(source: Path) -> PickleNeeds:
    """What a pickle file, or all pickle files in a folder, need to be loaded.

    Raises:
        PickleUnreadable: a file cannot be read to its end.
    """
    files = (
        [path for path in sorted(source.rglob("*")) if is_pickle_file(path)] if source.is_dir() else [source]
    )
    found: set[Global] = set()
    for path in files:
        found |= pickle_globals(path)
    return needs_of_globals(found)


def needs_of_globals(found: Iterable[Global]) -> PickleNeeds:
    """The packages that provide some globals."""
    listed = tuple(sorted(found))
    provided = packages_distributions()
    requirements: set[str] = set()
    unprovided: set[str] = set()
    for name in listed:
        root = name.module.partition(".")[0]
        if root in sys.stdlib_module_names or root in ("__builtin__", "copy_reg"):
            continue
        if root not in provided:
            unprovided.add(name.module)
            continue
        requirements.update(_pinned(package) for package in provided[root])
    return PickleNeeds(listed, tuple(sorted(requirements)), tuple(sorted(unprovided)))


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package
