"""The steps that the flow of a model version is made of, and what puts right what killed commands left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlflow_deploy.bundle import Bundle, read_bundle, write_bundle
from mlflow_deploy.config import DeploymentSpec, state_home
from mlflow_deploy.lifecycle.evidence import log_bundle
from mlflow_deploy.lifecycle.registry import ResolvedModel, fetch, resolve
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.rollout import machine
from mlflow_deploy.targets.base import DeploymentRecord, RevisionRecord, Target

if TYPE_CHECKING:
    from mlflow_deploy.conversion import Tolerance
    from mlflow_deploy.conversion.validation import Validation

Progress = Callable[[str], None]
"""Takes one line on what is being done now."""


def make_revision(
    number: int,
    model_uri: str,
    spec: DeploymentSpec,
    progress: Progress,
    *,
    label: str = "",
    log: bool = True,
) -> tuple[RevisionRecord, Bundle]:
    """Resolve and convert a model; returns the revision that would serve it, and its bundle.

    Args:
        log: log the parity report to the run that made the model; a plan changes nothing there.

    Raises:
        DeployError: the model is not found, or cannot be brought into the wanted form.
    """
    progress(f"Looking up {model_uri}")
    model = resolve(model_uri)
    bundle, parity = make_bundle(model, spec, progress)
    # Not a note of the bundle: whether a run could be written is no property of the model.
    unlogged = log_bundle(bundle) if log else ""
    return RevisionRecord(
        number=number,
        bundle=bundle.digest,
        format=bundle.manifest.format,
        model_uri=model_uri,
        resolved_uri=model.uri,
        model_name=model.name,
        model_version=model.version,
        fallback=bundle.manifest.fallback,
        parity=parity,
        notes=(*bundle.manifest.notes, unlogged) if unlogged else bundle.manifest.notes,
        spec=spec.model_dump(mode="json"),
        created_at=now(),
        label=label,
    ), bundle


def make_bundle(model: ResolvedModel, spec: DeploymentSpec, progress: Progress) -> tuple[Bundle, str]:
    """Fetch and convert a model; returns its bundle and one line on the parity check."""
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.validation import from_path, from_run
    from mlflow_deploy.serving.inprocess import open_in_process

    with mlflow_is_quiet(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        download, converted = Path(work) / "model", Path(work) / "servable"
        download.mkdir()
        converted.mkdir()
        progress(f"Fetching {model.uri}")
        folder, source = fetch(model, download)
        validation: Validation | None = None
        if spec.parity.data:
            validation = from_path(spec.parity.data)
        elif source.run_id:
            progress("Fetching the validation rows of its run")
            validation = from_run(source.run_id)
        conversion = make_servable(
            folder,
            converted,
            format=spec.format,
            precision=spec.precision,
            validation=validation,
            tolerance=_tolerance(spec),
            progress=progress,
            opener=open_in_process,
        )
        progress("Writing the bundle")
        bundle = write_bundle(
            state_home() / "bundles",
            model=source,
            servable=conversion.servable,
            content=conversion.content,
            documents={
                "signature.json": conversion.signature,
                "example.json": conversion.example,
                "parity.json": conversion.parity.to_dict() if conversion.parity else None,
                "profile.json": _profile(validation),
            },
            fallback=conversion.fallback,
            rejected=conversion.rejected,
            notes=conversion.notes,
        )
    return bundle, conversion.parity.summary if conversion.parity else ""


def _tolerance(spec: DeploymentSpec) -> Tolerance | None:
    """The tolerances the user gave, None when the precision decides."""
    from dataclasses import replace

    from mlflow_deploy.conversion.report import FP32, TOLERANCES

    known = {name: value for name, value in spec.parity.tolerances.items() if value is not None}
    return replace(TOLERANCES.get(spec.precision, FP32), **known) if known else None


def _profile(validation: Validation | None) -> Any:
    """The reference profile of the validation rows, None without rows."""
    if validation is None:
        return None
    from mlflow_deploy.monitoring import build_profile

    label = validation.label
    features = validation.frame.drop(columns=[label]) if label else validation.frame
    return msgspec.json.decode(build_profile(features).to_json())


def clear(target: Target, name: str) -> None:
    """Remove what a killed `create` or `delete` left under this name; the caller holds its lock."""
    record = target.read_record(name)
    if record is None or record.phase != "ready":
        target.remove(name)


def settle(target: Target, record: DeploymentRecord) -> DeploymentRecord:
    """Undo a rollout that a killed `update` left and make what runs match the record."""
    return machine.settle(target, record, lambda number: bundle_of(record, number), now=now())


def next_number(record: DeploymentRecord) -> int:
    """The number of the next revision; one that was removed never comes again."""
    past = [change.revision for change in record.history if change.outcome == "done"]
    return max([revision.number for revision in record.revisions] + past) + 1


def bundle_of(record: DeploymentRecord, number: int) -> Bundle:
    """The bundle of a revision; the server checks its digests when it starts."""
    return read_bundle(state_home() / "bundles" / record.revision(number).bundle, verify=False)


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
