"""What the controller remembers between two looks and over its own death: a file in the state folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import write_atomic


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller knows of one stage of one model.

    Attributes:
        alias: version that has the stage's alias; empty for none.
        classic: newest version in MLflow's stage; empty for none.
        wanted: version that shall serve; empty when none shall.
        settled: version that was promoted to the end; empty before.
        refused: what a refusal depended on (version, policy, tags); before one of them changes, it is not tried
            again.
        retry_at: seconds since the epoch from which on a failed promotion is tried again; 0 for none.
        target, deployment: where the settled version was deployed; empty before.
        registry: digest of the registry's URI that it was read from, `settled` being set.
    """

    alias: str = ""
    classic: str = ""
    wanted: str = ""
    settled: str = ""
    refused: str = ""
    retry_at: float = 0.0
    target: str = ""
    deployment: str = ""
    registry: str = ""


class Memory:
    """The remembered stages, by model and stage.

    Losing it is harmless: what shall serve is read from the registry again, at the price of asking gates once
    more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, Seen] = {}
        try:
            self._seen = msgspec.json.decode(path.read_bytes(), type=dict[str, Seen])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            raise StateWriteFailed(path, f"it cannot be read: {error}; remove it to begin anew") from error

    def get(self, model: str, stage: str) -> Seen | None:
        """What is known of a stage; None before the first look."""
        return self._seen.get(f"{model}/{stage}")

    def all(self) -> list[tuple[str, str, Seen]]:
        """Model, stage and what is known of it."""
        parts = [(key.rpartition("/"), seen) for key, seen in self._seen.items()]
        return [(model, stage, seen) for (model, _, stage), seen in parts]

    def forget(self, model: str, stage: str) -> None:
        """Know nothing of a stage any more.

        Raises:
            StateWriteFailed: it cannot be written.
        """
        if self._seen.pop(f"{model}/{stage}", None) is not None:
            self._write()

    def put(self, model: str, stage: str, seen: Seen) -> None:
        """Remember it, on the disk when it has changed.

        Raises:
            StateWriteFailed: it cannot be written.
        """
        key = f"{model}/{stage}"
        if self._seen.get(key, Seen()) == seen:
            return
        self._seen[key] = seen
        self._write()

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self._path, msgspec.json.encode(self._seen))
        except OSError as error:
            raise StateWriteFailed(self._path, error.strerror or str(error)) from error


def decide(seen: Seen | None, alias: str, classic: str) -> str:
    """Which version shall serve in a stage, by its alias and by MLflow's stage; empty for none.

    Where the two disagree, the one that somebody moved since the last look counts. At the first look it is the
    alias, which is where MLflow goes.

    Args:
        seen: the last look; None at the first.
        alias: version that has the alias now.
        classic: newest version in MLflow's stage now.
    """
    if seen is None or alias == classic:
        return alias or classic
    if classic != seen.classic:
        # Who left the stage without another coming shall not serve, whatever alias it still has.
        left = not classic and alias == seen.classic
        return "" if left else classic or alias
    if alias != seen.alias:
        return alias or classic
    return seen.wanted
