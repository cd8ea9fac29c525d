"""Model URIs: which fixed model version a URI means now, and its files."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from mlflow_deploy.bundle import ModelSource, folder_digest
from mlflow_deploy.errors import (
    DeployError,
    ModelCorrupt,
    ModelNotFound,
    RegistryRefused,
    RegistryUnreachable,
    nearest,
)
from mlflow_deploy.reachable import no_answer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_PREFLIGHT_SECONDS = 5.0
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "NOT_FOUND")


@dataclasses.dataclass(frozen=True)
class ResolvedModel:
    """What a model URI means at this moment.

    Attributes:
        asked: the URI the user gave.
        uri: a URI that will always mean the same model.
        name: registered model, or an empty string.
        version: its version, or an empty string.
        model_id: MLflow's `m-...` id, or an empty string.
        run_id: run that logged it, or an empty string.
        registered: the registered version as it was then, where the URI names one.
    """

    asked: str
    uri: str
    name: str = ""
    version: str = ""
    model_id: str = ""
    run_id: str = ""
    registered: ModelVersion | None = dataclasses.field(default=None, repr=False, compare=False)


def resolve(uri: str) -> ResolvedModel:
    """Find the fixed version that a model URI means now.

    Args:
        uri: `models:/NAME/VERSION`, `models:/NAME/Stage`, `models:/NAME/latest`, `models:/NAME@alias`,
            `models:/m-...`, `runs:/RUN_ID/PATH`, an artifact URI, or a local folder.

    Raises:
        ModelNotFound: there is none.
        RegistryUnreachable: the MLflow server does not answer.
    """
    scheme = urlparse(uri).scheme
    if scheme == "models":
        return _resolve_registered(uri, uri.removeprefix("models:").lstrip("/"))
    if scheme == "runs":
        run_id, _, path = uri.removeprefix("runs:").lstrip("/").partition("/")
        if not run_id or not path:
            raise ModelNotFound(uri, why="it is not of the form runs:/RUN_ID/PATH")
        return ResolvedModel(asked=uri, uri=uri, run_id=run_id)
    if scheme in ("", "file"):
        path_text = urlparse(uri).path if scheme == "file" else uri
        folder = Path(path_text).expanduser()
        if not folder.is_dir():
            raise ModelNotFound(
                uri,
                why=f"there is no folder {folder}",
                hint="Registered models are models:/NAME/VERSION, models:/NAME/STAGE or models:/NAME@ALIAS",
            )
        return ResolvedModel(asked=uri, uri=folder.resolve().as_uri())
    return ResolvedModel(asked=uri, uri=uri)


def fetch(model: ResolvedModel, folder: Path) -> tuple[Path, ModelSource]:
    """Bring a model's files to this machine.

    Args:
        folder: an empty private folder for the files; a model that is a local folder already stays there.

    Returns:
        The model folder and its description for the bundle.

    Raises:
        ModelNotFound: its artifacts are gone.
        ModelCorrupt: there is no readable MLmodel file.
        RegistryUnreachable: the MLflow server does not answer.
    """
    local = urlparse(model.uri)
    if local.scheme == "file":
        path = Path(local.path)
    else:
        import mlflow

        with registry_errors(model.asked):
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=model.uri, dst_path=str(folder)))
        # MLflow adds it to downloads by models:/ URIs; the model is the same without it.
        (path / "registered_model_meta").unlink(missing_ok=True)
    return path, _describe(model, path)


def versions_of(model: ResolvedModel) -> list[ModelVersion]:
    """The registered versions that a model is, also when it was named by a run or by its id.

    The version that the URI named is as it was when it was looked up. Empty for a model that is registered
    nowhere, such as a folder.

    Raises:
        RegistryUnreachable: the MLflow server does not answer.
    """
    if model.registered is not None:
        return [model.registered]
    if not (model.model_id or model.run_id):
        return []
    import mlflow

    with registry_errors(model.asked):
        client = mlflow.MlflowClient()
        found: list[ModelVersion] = []
        ids = {model.model_id} if model.model_id else set()
        if not ids and model.run_id:
            found += client.search_model_versions(f"run_id='{model.run_id}'")
            outputs = client.get_run(model.run_id).outputs
            ids = {each.model_id for each in outputs.model_outputs} if outputs else set()
        for model_id in sorted(ids):
            found += client.search_model_versions(f"source_path='models:/{model_id}'")
        return found


def registered_model(name: str) -> tuple[list[ModelVersion], dict[str, str]]:
    """All versions of a registered model, the oldest first, and alias -> version.

    Raises:
        ModelNotFound: there is none of this name.
        RegistryUnreachable: the MLflow server does not answer.
    """
    import mlflow

    with registry_errors(f"models:/{name}"):
        client = mlflow.MlflowClient()
        aliases = client.get_registered_model(name).aliases
        quoted = name.replace("'", "''")
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = client.search_model_versions(f"name='{quoted}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
    found.sort(key=lambda each: int(each.version))
    return found, {str(alias): str(version) for alias, version in aliases.items()}


def tag_version(name: str, version: str, tags: Mapping[str, str | None]) -> None:
    """Set tags of a model version; a value of None removes the tag.

    Raises:
        ModelNotFound: there is no such version.
        RegistryUnreachable: the MLflow server does not answer.
    """
    import mlflow

    with registry_errors(f"models:/{name}/{version}"):
        client = mlflow.MlflowClient()
        present = client.get_model_version(name, version).tags
        for key, value in tags.items():
            if value is not None:
                client.set_model_version_tag(name, version, key, value)
            elif key in present:
                client.delete_model_version_tag(name, version, key)


def _describe(model: ResolvedModel, path: Path) -> ModelSource:
    import yaml

    try:
        document: Any = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))
        flavors = tuple(sorted(document["flavors"]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ModelCorrupt(model.asked, f"its MLmodel file is missing or broken: {error}") from error
    return ModelSource(
        uri=model.uri,
        name=model.name,
        version=model.version,
        model_id=model.model_id or document.get("model_id") or "",
        run_id=model.run_id or document.get("run_id") or "",
        flavors=flavors,
        mlflow_version=str(document.get("mlflow_version", "")),
        digest=folder_digest(path),
    )


def _resolve_registered(asked: str, rest: str) -> ResolvedModel:
    import mlflow

    with registry_errors(asked):
        client = mlflow.MlflowClient()
        if _MODEL_ID.fullmatch(rest):
            logged = client.get_logged_model(rest)
            return ResolvedModel(asked=asked, uri=asked, model_id=rest, run_id=logged.source_run_id or "")
        if "@" in rest:
            name, _, alias = rest.rpartition("@")
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, _, which = rest.rpartition("/")
            if not name:
                raise ModelNotFound(
                    asked,
                    why="it is not of the form models:/NAME/VERSION, models:/NAME/STAGE or models:/NAME@ALIAS",
                )
            version = (
                client.get_model_version(name, which)
                if which.isdigit()
                else _newest(client, asked, name, which)
            )
    return ResolvedModel(
        asked=asked,
        uri=f"models:/{version.name}/{version.version}",
        name=version.name,
        version=str(version.version),
        model_id=getattr(version, "model_id", None) or "",
        run_id=version.run_id or "",
        registered=version,
    )


def _newest(client: MlflowClient, asked: str, name: str, stage: str) -> ModelVersion:
    """The newest version in a stage, as MLflow's own URIs mean it; `latest` is any stage."""
    versions = list(client.search_model_versions(f"name='{name}'"))
    if not versions:
        client.get_registered_model(name)
        raise ModelNotFound(asked, why=f"the registered model {name!r} has no versions")
    chosen = [v for v in versions if stage.lower() in ("latest", str(v.current_stage).lower())]
    if not chosen:
        stages = sorted({str(v.current_stage) for v in versions} - {"None"})
        raise ModelNotFound(
            asked,
            why=f"no version of {name!r} is in stage {stage!r}",
            hint=f"Stages in use: {', '.join(stages) or 'none'}; {nearest(stage, stages)}".rstrip("; "),
        )
    return max(chosen, key=lambda v: int(v.version))


@contextlib.contextmanager
def registry_errors(asked: str) -> Iterator[None]:
    """Turn what MLflow raises into errors that say what to do; ask first whether its server answers."""
    import mlflow
    import requests
    from mlflow.exceptions import MlflowException

    registry = mlflow.get_registry_uri()
    for server in {registry, mlflow.get_tracking_uri()}:
        if reason := no_answer(server, seconds=_PREFLIGHT_SECONDS):
            raise RegistryUnreachable(server, reason)
    try:
        yield
    except DeployError:
        raise
    except MlflowException as error:
        if (
            error.error_code in _MISSING
            or "No such file" in error.message
            or "not found" in error.message.lower()
        ):
            raise ModelNotFound(asked, why=error.message) from error
        if isinstance(error.__cause__, requests.RequestException) or "API request to" in error.message:
            raise RegistryUnreachable(registry, error.message) from error
        raise ModelNotFound(asked, why=error.message) from error
    except requests.RequestException as error:
        raise RegistryUnreachable(registry, str(error)) from error
    except (OSError, ValueError) as error:
        raise ModelNotFound(asked, why=str(error)) from error


@contextlib.contextmanager
def registry_changes(what: str) -> Iterator[None]:
    """The same around calls that change something.

    Args:
        what: what is changed, for the message.
    """
    try:
        with registry_errors(what):
            yield
    except ModelNotFound as error:
        raise RegistryRefused(what, error.why) from error
