"""MLflow's endpoints: an endpoint is a deployment of ours, a deployment inside it a revision with a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_deploy.config import check_name
from mlflow_deploy.errors import (
    ConfigError,
    DeploymentNotFound,
    EndpointDeploymentExists,
    EndpointDeploymentNotFound,
    UnknownSetting,
    Unsupported,
)
from mlflow_deploy.lifecycle import release, revisions
from mlflow_deploy.lifecycle.steps import Progress
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord

_FIRST = "default"
"""Name of the first deployment of an endpoint that is made with its model at once."""


def create_endpoint(
    target: Target, endpoint: str, config: Mapping[str, Any] | None, *, progress: Progress
) -> dict[str, Any]:
    """Make an endpoint with its first deployment, which gets all requests.

    Args:
        config: `model_uri`, optionally `deployment` (its name) and `flavor`; all else are settings.

    Raises:
        DeployError: nothing was made.
    """
    settings = dict(config or {})
    model_uri = settings.pop("model_uri", None)
    name, flavor = settings.pop("deployment", _FIRST), settings.pop("flavor", None)
    if not model_uri:
        raise ConfigError(
            f"Endpoint {endpoint!r} needs a model",
            why="an endpoint without a deployment could answer nothing",
            hint="Give config={'model_uri': 'models:/NAME/VERSION'}, or make it with its first deployment: "
            f"`mlflow deployments create --endpoint {endpoint} --name NAME -m MODEL_URI`",
        )
    check_name(name)
    release.create(target, endpoint, model_uri, flavor=flavor, config=settings, label=name, progress=progress)
    return describe_endpoint(target, endpoint)


def update_endpoint(
    target: Target, endpoint: str, config: Mapping[str, Any] | None, *, progress: Progress
) -> dict[str, Any]:
    """Share the requests of an endpoint among its deployments.

    Args:
        config: `traffic`: a mapping from deployment to percent, or text such as `blue=90,green=10`; or a key
            `traffic.NAME` for each of them.

    Raises:
        DeployError: the traffic is as before.
    """
    shares = _shares(config or {})
    record = target.require(check_name(endpoint))
    weights = {find(record, name).number: share for name, share in shares.items()}
    release.set_traffic(target, endpoint, weights, progress=progress)
    return describe_endpoint(target, endpoint)


def describe_endpoint(target: Target, endpoint: str) -> dict[str, Any]:
    """An endpoint: name, url, status, traffic by deployment, and the deployments in it.

    Raises:
        DeploymentNotFound: there is none.
    """
    record = target.require(check_name(endpoint))
    described = release.describe(target, record)
    deployments = [_described(described, name, revision) for name, revision in _named(record).items()]
    return {
        "name": endpoint,
        "target": target.name,
        "url": described["url"],
        "status": described["status"],
        "traffic": {row["name"]: row["traffic"] for row in deployments if row["traffic"]},
        "deployments": deployments,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }


def create_in(
    target: Target,
    endpoint: str,
    name: str,
    model_uri: str,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Make a deployment in an endpoint.

    The first one makes the endpoint and gets all requests; later ones get none until `update_endpoint`.

    Raises:
        EndpointDeploymentExists: the name is taken.
        DeployError: nothing was made; the endpoint answers as before.
    """
    check_name(name)
    try:
        record = target.require(check_name(endpoint))
    except DeploymentNotFound:
        release.create(
            target, endpoint, model_uri, flavor=flavor, config=config, label=name, progress=progress
        )
        return describe_in(target, endpoint, name)
    if name in _named(record):
        raise EndpointDeploymentExists(endpoint, name)
    revisions.add(target, endpoint, model_uri, flavor=flavor, config=config, label=name, progress=progress)
    return describe_in(target, endpoint, name)


def update_in(
    target: Target,
    endpoint: str,
    name: str,
    model_uri: str | None,
    *,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Replace what a deployment in an endpoint serves; it keeps its name and its share of the requests.

    One that has all requests is updated by the strategy, as any deployment. With a part of them, the new
    revision takes over that part when it is ready.

    Raises:
        DeployError: the endpoint answers as before.
    """
    record = target.require(check_name(endpoint))
    old = find(record, name)
    share = record.weights.get(old.number, 0)
    if share == 100:
        release.update(
            target, endpoint, model_uri, flavor=flavor, config=config, label=old.label, progress=progress
        )
        return describe_in(target, endpoint, name)
    added, new = revisions.add(
        target,
        endpoint,
        model_uri or old.resolved_uri,
        flavor=flavor,
        config=config,
        label=old.label or name,
        base=old,
        progress=progress,
    )
    if share:
        rest = {number: weight for number, weight in added.weights.items() if number != old.number}
        release.set_traffic(target, endpoint, {**rest, new.number: share}, action="update", progress=progress)
    return describe_in(target, endpoint, name)


def delete_in(target: Target, endpoint: str, name: str) -> None:
    """Remove a deployment that gets no requests from an endpoint; one that does not exist is no error.

    Raises:
        RevisionInUse: it gets requests.
    """
    record = target.read_record(check_name(endpoint))
    if record is None or name not in _named(record):
        return
    label = find(record, name).label
    same = [each.number for each in record.revisions if label and each.label == label]
    # The one in use first, so that nothing has been removed when it is refused.
    numbers = sorted(same or [find(record, name).number], key=lambda number: -record.weights.get(number, 0))
    for number in numbers:
        revisions.delete_revision(target, endpoint, number)


def describe_in(target: Target, endpoint: str, name: str) -> dict[str, Any]:
    """A deployment in an endpoint.

    Raises:
        DeploymentNotFound: there is no such endpoint.
        EndpointDeploymentNotFound: there is no such deployment in it.
    """
    record = target.require(check_name(endpoint))
    return _described(release.describe(target, record), name, find(record, name))


def list_in(target: Target, endpoint: str) -> list[dict[str, Any]]:
    """All deployments in an endpoint, by name."""
    found: list[dict[str, Any]] = describe_endpoint(target, endpoint)["deployments"]
    return found


def forced_revision(target: Target, record: DeploymentRecord, name: str) -> int:
    """Number of the revision to force so that a deployment in an endpoint answers; 0 when it does anyway.

    Raises:
        EndpointDeploymentNotFound: there is no such deployment.
        Unsupported: without a gateway only the one with all requests can answer.
        ConfigError: it does not run, because it gets no requests.
    """
    revision = find(record, name)
    if _weight(record, revision) == 100:
        return 0
    if not target.can_split(record):
        raise Unsupported(
            target.name,
            f"asking deployment {name!r} of endpoint {record.name!r}",
            "Without a gateway only the one with all requests answers",
        )
    if target.status(record, revision.number).state == "stopped":
        raise ConfigError(
            f"Deployment {name!r} of endpoint {record.name!r} does not run",
            why="it gets no requests",
            hint=f"Give it some: `mlflow deployments update-endpoint --endpoint {record.name} -C traffic=...`",
        )
    return revision.number


def find(record: DeploymentRecord, name: str) -> RevisionRecord:
    """The revision that a deployment's name in an endpoint means: the newest one of that name, or a number.

    Raises:
        EndpointDeploymentNotFound: there is none.
    """
    named = _named(record)
    if name in named:
        return named[name]
    for revision in record.revisions:
        if name == str(revision.number):
            return revision
    raise EndpointDeploymentNotFound(record.name, name, named)


def _named(record: DeploymentRecord) -> dict[str, RevisionRecord]:
    """Name -> its newest revision, or the newest with traffic; revisions without a name go by their number."""
    found: dict[str, RevisionRecord] = {}
    for revision in sorted(record.revisions, key=lambda each: (bool(_weight(record, each)), each.number)):
        found[revision.label or str(revision.number)] = revision
    return dict(sorted(found.items()))


def _weight(record: DeploymentRecord, revision: RevisionRecord) -> int:
    return record.weights.get(revision.number, 0)


def _described(deployment: Mapping[str, Any], name: str, revision: RevisionRecord) -> dict[str, Any]:
    row = next(each for each in deployment["revisions"] if each["revision"] == revision.number)
    # During an update the old and the new revision share the name and its requests.
    share = sum(each["traffic"] for each in deployment["revisions"] if each["name"] == name)
    return {
        "name": name,
        "endpoint": deployment["name"],
        "flavor": revision.format,
        "url": deployment["url"],
        "status": row["status"],
        "traffic": share,
        "revision": revision.number,
        "model_uri": revision.model_uri,
        "resolved_uri": revision.resolved_uri,
        "model_name": revision.model_name,
        "model_version": revision.model_version,
        "bundle": revision.bundle,
        "parity": revision.parity,
        "notes": list(revision.notes),
        "created_at": revision.created_at,
    }


def _shares(config: Mapping[str, Any]) -> dict[str, int]:
    """Deployment -> percent, from any of the forms that `update_endpoint` takes."""
    shares: dict[str, Any] = {}
    for key, value in config.items():
        head, _, name = str(key).partition(".")
        if head != "traffic":
            raise UnknownSetting(key, ["traffic", "traffic.NAME"])
        if name:
            shares[name] = value
        elif isinstance(value, Mapping):
            shares.update(value)
        else:
            pairs = [part.partition("=") for part in str(value).split(",") if part.strip()]
            shares.update({each.strip(): percent for each, _, percent in pairs})
    if not shares:
        raise ConfigError("No traffic was given", hint="Give it as traffic=NAME=PERCENT,NAME=PERCENT")
    try:
        return {str(name): int(share) for name, share in shares.items()}
    except (TypeError, ValueError):
        raise ConfigError(
            f"The traffic {shares!r} is not readable", hint="Give whole percents, as in blue=90,green=10"
        ) from None
