"""Marks of quarantine: tags of a model version, which all see, and a note with each deployment of it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mlflow_deploy.errors import Quarantined, StateWriteFailed
from mlflow_deploy.lifecycle.registry import ResolvedModel, versions_of
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord

TAG = "deploy.quarantine"
"""Tag of a model version in quarantine; its value is the reason. Beside it are `.by` and `.at`."""

_DOCUMENT = "quarantine"


def refuse_quarantined(model: ResolvedModel) -> None:
    """Refuse a model that is in quarantine under whatever URI it was asked for.

    Raises:
        Quarantined: it is, or the same model is registered as a version that is.
        DeployError: the registry does not answer.
    """
    for version in versions_of(model):
        if TAG in version.tags:
            by = version.tags.get(f"{TAG}.by", "")
            raise Quarantined(version.name, str(version.version), version.tags[TAG], by)


def marks(target: Target, name: str) -> dict[str, str]:
    """`MODEL/VERSION` -> reason, for the versions in quarantine that a deployment has or had a revision of.

    Raises:
        StateWriteFailed: they cannot be read.
    """
    found = target.read_archive(name, _DOCUMENT).get(_DOCUMENT)
    try:
        return msgspec.json.decode(found, type=dict[str, str]) if found else {}
    except msgspec.DecodeError as error:
        raise StateWriteFailed(f"the quarantine of {name}", f"it cannot be read: {error}") from error


def mark(target: Target, name: str, version: str, reason: str | None) -> None:
    """Note with a deployment that a version is in quarantine; a reason of None takes that back."""
    known = marks(target, name)
    if known.get(version) == reason:
        return
    known.pop(version, None)
    if reason is not None:
        known[version] = reason
    target.write_archive(name, _DOCUMENT, msgspec.json.encode(known))


def in_quarantine(revision: RevisionRecord, known: Iterable[str]) -> bool:
    """Whether a revision's model version is among the marks."""
    return bool(revision.model_name) and f"{revision.model_name}/{revision.model_version}" in known


def refuse_marked(target: Target, record: DeploymentRecord, numbers: Iterable[int]) -> None:
    """Refuse traffic for revisions in quarantine; needs no registry.

    Raises:
        Quarantined: one of them is.
    """
    known = marks(target, record.name)
    for number in numbers:
        revision = record.revision(number)
        if in_quarantine(revision, known):
            version = f"{revision.model_name}/{revision.model_version}"
            raise Quarantined(revision.model_name, revision.model_version, known[version])
