"""Who moved what of a registered model: its versions, stages and aliases, as far as MLflow tells.

MLflow keeps no history of stages and aliases. Each look at the registry is compared with the one before, and
what has changed in between is kept in this machine's state folder. A stage carries the time of its move, an
alias only the two looks that it lies between. Who did it is known of commands that say so with `moving`, and of
what the app in the MLflow server saw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import msgspec

from mlflow_deploy.config import state_home
from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import locked
from mlflow_deploy.lifecycle.hints import Hint
from mlflow_deploy.lifecycle.registry import registered_model
from mlflow_deploy.targets.folder_archive import FolderArchive

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_MOVES, _SEEN = "moves", "seen"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move in the registry.

    Attributes:
        kind: version (made or removed), stage or alias.
        what: the version's number, or the alias.
        before, after: stage of the version, or version of the alias; empty for none.
        at: UTC time, ISO 8601; of an alias when the move was first seen.
        not_before: UTC time of the look before it; empty when `at` is the time of the move itself.
        by: who did it; empty where MLflow does not tell.
        reason: why, where the command said so.
    """

    kind: Literal["version", "stage", "alias"]
    what: str
    before: str
    after: str
    at: str
    not_before: str = ""
    by: str = ""
    reason: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model as a look found it.

    Attributes:
        at: UTC time, ISO 8601.
        stages: version -> its stage, `None` for none.
        aliases: alias -> version.
    """

    at: str
    stages: dict[str, str] = {}
    aliases: dict[str, str] = {}


def moves_of(model: str, *, by: str = "", reason: str = "", hints: Sequence[Hint] = ()) -> list[Move]:
    """Look at a registered model, keep what has changed since the last look, and give all that is known.

    Args:
        by: who did what is new now.
        reason: why.
        hints: what was seen of it while it was done, the oldest first; they tell when, and perhaps who.

    Raises:
        ModelNotFound: there is none of this name.
        RegistryUnreachable: the MLflow server does not answer.
        StateWriteFailed: what was seen cannot be kept.
    """
    archive, name = FolderArchive(state_home() / "registry"), quote(model, safe="").replace(".", "%2E")
    try:
        state_home().mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(state_home() / "registry.lock", wait=True):
            return _looked(archive, name, model, by, reason, hints)
    except (OSError, msgspec.DecodeError) as error:
        raise StateWriteFailed(f"the moves of {model}", str(error)) from error


@contextlib.contextmanager
def moving(model: str, *, by: str, reason: str = "") -> Iterator[None]:
    """Say who makes the moves that are made inside.

    Raises:
        DeployError: as `moves_of`; the moves inside are made all the same.
    """
    moves_of(model)
    yield
    moves_of(model, by=by, reason=reason)


def _looked(
    archive: FolderArchive, name: str, model: str, by: str, reason: str, hints: Sequence[Hint]
) -> list[Move]:
    kept = archive.read(name, _MOVES, _SEEN)
    moves = msgspec.json.decode(kept[_MOVES], type=list[Move]) if _MOVES in kept else []
    before = msgspec.json.decode(kept[_SEEN], type=Seen) if _SEEN in kept else None
    versions, aliases = registered_model(model)
    after = Seen(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        stages={str(each.version): str(each.current_stage) for each in versions},
        aliases=aliases,
    )
    new = [*_versions(before, versions, after), *_stages(before, versions), *_aliases(before, after)]
    new = [_told(each, hints) for each in new]
    if by:
        new = [msgspec.structs.replace(each, by=by, reason=reason) for each in new]
    if new:
        moves += sorted(new, key=lambda each: each.at)
        archive.write(name, _MOVES, msgspec.json.encode(moves))
    archive.write(name, _SEEN, msgspec.json.encode(after))
    return moves


def mover(moves: Sequence[Move], version: str, stage: str, alias: str) -> str:
    """Who brought a version to MLflow's stage or gave it the alias last; empty where that is not known."""
    places = (("stage", version, stage), ("alias", alias, version))
    found = [each.by for each in moves if (each.kind, each.what, each.after) in places]
    return found[-1] if found else ""


def _told(move: Move, hints: Sequence[Hint]) -> Move:
    """The move with what the latest hint of it tells."""
    for hint in reversed(hints):
        itself = (hint.kind, hint.what, hint.after) == (move.kind, move.what, move.after)
        archived = hint.archives and (move.kind, move.before, move.after) == ("stage", hint.after, "Archived")
        lost = (hint.kind, hint.after, move.kind) == ("version", "removed", "alias") and (
            (move.before, move.after) == (hint.what, "")
        )
        if itself or archived or lost:
            return msgspec.structs.replace(move, at=hint.at, not_before="", by=hint.by or move.by)
    return move


def _versions(before: Seen | None, versions: list[ModelVersion], after: Seen) -> Iterator[Move]:
    known = before.stages if before else {}
    for each in versions:
        if str(each.version) not in known:
            at, by = _time(each.creation_timestamp), each.user_id or ""
            yield Move(kind="version", what=str(each.version), before="", after="made", at=at, by=by)
    for number in known.keys() - after.stages.keys():
        not_before = before.at if before else ""
        yield Move(
            kind="version", what=number, before="made", after="removed", at=after.at, not_before=not_before
        )


def _stages(before: Seen | None, versions: list[ModelVersion]) -> Iterator[Move]:
    for each in versions:
        old = before.stages.get(str(each.version), "None") if before else "None"
        if str(each.current_stage) != old:
            # A transition sets this time; so does a later change of the description.
            at = _time(each.last_updated_timestamp)
            not_before = before.at if before else ""
            yield Move(
                kind="stage", what=str(each.version), before=old, after=str(each.current_stage), at=at,
                not_before=not_before,
            )  # fmt: skip


def _aliases(before: Seen | None, after: Seen) -> Iterator[Move]:
    old = before.aliases if before else {}
    for alias in sorted(old.keys() | after.aliases.keys()):
        was, now = old.get(alias, ""), after.aliases.get(alias, "")
        if was != now:
            yield Move(
                kind="alias", what=alias, before=was, after=now, at=after.at,
                not_before=before.at if before else "",
            )  # fmt: skip


def _time(milliseconds: Any) -> str:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC).isoformat(timespec="seconds")
