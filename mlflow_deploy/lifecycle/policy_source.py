"""Where the policy of a model comes from: the policy file, a tag of the registered model, or the defaults."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow_deploy.errors import ConfigError, ModelNotFound
from mlflow_deploy.lifecycle.policy import ModelPolicy, Policy, parse_document
from mlflow_deploy.lifecycle.registry import registry_errors

TAG = "deploy.policy"
"""Tag of a registered model with its policy as YAML, or with the URI of an artifact that holds it."""

_FETCH_SECONDS = 60.0
_fetched: dict[str, tuple[float, str]] = {}
"""URI -> when it was fetched by the monotonic clock, and its text."""

_URI = re.compile(r"[a-z][a-z0-9+.-]*:/\S+")


def policy_of(name: str, path: Path | str | None = None) -> ModelPolicy:
    """The policy that holds for a registered model.

    What the policy file says of this model goes before the tag: the file lies where deployments are made, and
    a tag can be written by everyone who may write to the registry. For the same reason a tag cannot name
    gates by dotted path, which would run code of its choice here.

    Args:
        path: the policy file; None as `Policy.load` finds it.

    Raises:
        ConfigError: the policy cannot be read or used.
        ModelNotFound: there is no such registered model.
        RegistryUnreachable: the registry does not answer.
    """
    policy = Policy.load(path)
    if name in policy.models:
        return policy.for_model(name)
    import mlflow

    with registry_errors(f"models:/{name}"):
        tags = mlflow.MlflowClient().get_registered_model(name).tags
    return policy_from(policy, name, tags)


def policy_from(policy: Policy, name: str, tags: Mapping[str, str]) -> ModelPolicy:
    """The policy that holds for a registered model with these tags; the same errors as `policy_of`."""
    if name in policy.models or TAG not in tags:
        return policy.for_model(name)
    source = f"in tag {TAG} of {name}"
    own = parse_document(ModelPolicy, _text(tags[TAG], source), source)
    foreign = [gate for stage in own.stages for gate in stage.gates if ":" in gate]
    if foreign:
        raise ConfigError(
            f"The policy {source} names the gate {foreign[0]!r} by its path",
            why="whoever may write tags could run any code here",
            hint="Name it in the policy file, or install it with an entry point of group mlflow_deploy.gates",
        )
    return policy.model_copy(update={"models": {name: own}}).for_model(name)


def _text(value: str, source: str) -> str:
    """The policy's YAML; of an artifact at most a minute old, since the controller asks at every look."""
    uri = value.strip()
    if not _URI.fullmatch(uri):
        return value
    known = _fetched.get(uri)
    if known is None or time.monotonic() - known[0] > _FETCH_SECONDS:
        known = _fetched[uri] = (time.monotonic(), _downloaded(uri, source))
    return known[1]


def _downloaded(uri: str, source: str) -> str:
    import tempfile

    import mlflow

    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder:
        try:
            with registry_errors(uri):
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            return Path(path).read_text(encoding="utf-8")
        except (ModelNotFound, OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The policy {source} cannot be read", why=str(error)) from error
