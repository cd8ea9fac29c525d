"""What a release record says of its surroundings: the model, the evidence, the machine."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from mlflow_deploy.bundle import PARITY, Bundle, read_bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import BundleError, DeployError
from mlflow_deploy.lifecycle.records.record import ModelFacts
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import RevisionRecord

_PACKAGES = ("mlflow-deploy", "mlflow", "mlflow-skinny", "numpy", "onnxruntime", "scikit-learn", "torch")


def bundle_on_this_machine(digest: str) -> Bundle | None:
    """A bundle by its digest; None when this machine does not have it, or not whole."""
    try:
        return read_bundle(state_home() / "bundles" / digest, verify=False)
    except BundleError:
        return None


def model_facts(revision: RevisionRecord, bundle: Bundle | None) -> ModelFacts:
    """What is known of the model of a revision."""
    source = bundle.manifest.model if bundle else None
    return ModelFacts(
        asked=revision.model_uri,
        uri=revision.resolved_uri,
        name=revision.model_name,
        version=revision.model_version,
        model_id=source.model_id if source else "",
        run_id=source.run_id if source else "",
        digest=source.digest if source else "",
    )


def parity_report(bundle: Bundle | None) -> Any:
    """The parity report in a bundle, None without one."""
    try:
        return bundle.document(PARITY) if bundle else None
    except BundleError as error:
        return {"unreadable": error.text}


def image_of(target: Target, revision: RevisionRecord, bundle: Bundle | None) -> str:
    """Name of the image that a revision runs from; empty without images, or when the engine does not tell."""
    try:
        return target.image_of(revision, bundle).get("name", "") if bundle else ""
    except DeployError:
        return ""


def approvers(evidence: Mapping[str, Any]) -> tuple[str, ...]:
    """Who had approved the version: every list `approved_by` in the evidence, as gate `approval` gives it."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            named = value.get("approved_by")
            if isinstance(named, list | tuple):
                found.extend(str(each) for each in named)
            for each in value.values():
                look(each)
        elif isinstance(value, list | tuple):
            for each in value:
                look(each)

    look(evidence)
    return tuple(dict.fromkeys(found))


def environment() -> dict[str, str]:
    """Versions and machine of this command."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "machine": platform.node()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
