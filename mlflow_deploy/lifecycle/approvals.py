"""Approvals and rejections of model versions: tags that people and other tools can read and write too.

`deploy.approval.<stage>=<who>` names everybody who approved, separated by commas; that is also what other tools
may write. `deploy.approval.<stage>.<who>=<comment>` is one person's own tag, so that two people who approve at
the same moment do not overwrite each other; `deploy.rejection.<stage>.<who>=<comment>` is the contrary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.registry import registry_changes, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

APPROVAL = "deploy.approval"
REJECTION = "deploy.rejection"

_COMMENT_CHARACTERS = 1000
_NO_COMMENT = "-"


@dataclass(frozen=True)
class Approvals:
    """What people have said of a version on its way to a stage: person -> comment.

    Who has rejected a version has not approved it.
    """

    approved: Mapping[str, str]
    rejected: Mapping[str, str]


def approvals_in(tags: Mapping[str, str], stage: str) -> Approvals:
    """What the tags of a version say; stages are told apart whatever their letters' case."""
    approved, rejected = _words(tags, APPROVAL, stage), _words(tags, REJECTION, stage)
    return Approvals({who: text for who, text in approved.items() if who not in rejected}, rejected)


def read_approvals(model: str, version: str, stage: str) -> Approvals:
    """What people have said of a version.

    Raises:
        ModelNotFound: there is no such version.
        RegistryUnreachable: the registry does not answer.
    """
    return approvals_in(_tags(_client(), model, version), stage)


def say(model: str, version: str, stage: str, who: str, *, approve: bool, comment: str = "") -> Approvals:
    """Note one person's word; it takes the place of what the person said before.

    Args:
        stage: as the policy writes it.
        comment: why; shown in reports.

    Returns:
        What everybody has said by now.

    Raises:
        ConfigError: the person's name cannot be in a tag.
        ModelNotFound: there is no such version.
        RegistryUnreachable: the registry does not answer.
    """
    if not who or "," in who or not all(each.isalnum() or each in "_-. :/@" for each in who):
        raise ConfigError(
            f"{who!r} cannot approve", why="the name cannot be in a tag", hint="Set MLFLOW_TRACKING_USERNAME"
        )
    client = _client()
    tags = _tags(client, model, version)
    kind, other = (APPROVAL, REJECTION) if approve else (REJECTION, APPROVAL)
    text = " ".join(comment.split())[:_COMMENT_CHARACTERS] or _NO_COMMENT
    with registry_changes(f"the tags of version {version} of {model}"):
        client.set_model_version_tag(model, version, f"{kind}.{stage}.{_key(who)}", text)
        for key in (f"{other}.{stage}.{_key(who)}",):
            if key in tags:
                client.delete_model_version_tag(model, version, key)
        _list_all(client, model, version, stage, who, approve=approve)
    return read_approvals(model, version, stage)


def _list_all(client: MlflowClient, model: str, version: str, stage: str, who: str, *, approve: bool) -> None:
    """Write the one tag that names everybody who approved, after the personal ones."""
    tags = _tags(client, model, version)
    people = set(_words(tags, APPROVAL, stage)) - set(_words(tags, REJECTION, stage))
    people = people | {who} if approve else people - {who}
    key = f"{APPROVAL}.{stage}"
    if people:
        client.set_model_version_tag(model, version, key, ",".join(sorted(people)))
    elif key in tags:
        client.delete_model_version_tag(model, version, key)


def _words(tags: Mapping[str, str], kind: str, stage: str) -> dict[str, str]:
    found: dict[str, str] = {}
    prefix = f"{kind}.{stage}".lower()
    for key, value in tags.items():
        if key.lower() == prefix:
            found |= {who.strip(): found.get(who.strip(), "") for who in value.split(",") if who.strip()}
        elif key.lower().startswith(f"{prefix}."):
            found[_person(key[len(prefix) + 1 :])] = "" if value == _NO_COMMENT else value
    return found


def _key(who: str) -> str:
    """A person's name as a part of a tag's key, which cannot hold '@'."""
    return who.replace("@", "::")


def _person(key: str) -> str:
    return key.replace("::", "@")


def _client() -> MlflowClient:
    import mlflow

    return mlflow.MlflowClient()


def _tags(client: MlflowClient, model: str, version: str) -> dict[str, str]:
    with registry_errors(f"models:/{model}/{version}"):
        return dict(client.get_model_version(model, version).tags)
