"""Documents that outlive what they are about: a folder for each name, a file for each document."""

from __future__ import annotations

from pathlib import Path

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import write_atomic

_SUFFIX = ".json"


class FolderArchive:
    """Documents by name and key in a folder; each is replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, *keys: str) -> dict[str, bytes]:
        """The documents of a name by key; all of them when no key is given."""
        folder = self._folder / name
        paths = [folder / f"{key}{_SUFFIX}" for key in keys] if keys else sorted(folder.glob(f"*{_SUFFIX}"))
        found = {}
        for path in paths:
            try:
                found[path.stem] = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StateWriteFailed(path, f"it cannot be read: {error.strerror}") from error
        return found

    def write(self, name: str, key: str, document: bytes) -> None:
        """Replace a document.

        Raises:
            StateWriteFailed: it cannot be written; the earlier one is unchanged.
        """
        path = self._folder / name / f"{key}{_SUFFIX}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, document)
        except OSError as error:
            raise StateWriteFailed(path, error.strerror or str(error)) from error

    def names(self) -> list[str]:
        """Names that have documents, sorted."""
        return sorted(path.name for path in self._folder.glob("*") if path.is_dir())
