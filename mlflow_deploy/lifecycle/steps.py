"""The steps that the flow of a model version is made of, and what puts right what killed commands left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy.bundle import PARITY, PROFILE, Bundle, ModelSource, read_bundle, write_bundle
from mlflow_deploy.config import DeploymentSpec, state_home
from mlflow_deploy.lifecycle.evidence import log_bundle
from mlflow_deploy.lifecycle.prepared import bundle_key, keep, recall_bundle
from mlflow_deploy.lifecycle.quarantine_marks import refuse_quarantined
from mlflow_deploy.lifecycle.reference import make_reference
from mlflow_deploy.lifecycle.registry import ResolvedModel, fetch, resolve
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.rollout import machine
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, RevisionRecord

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
    checked: Bundle | None = None,
) -> tuple[RevisionRecord, Bundle]:
    """Resolve and convert a model; returns the revision that would serve it, and its bundle.

    Args:
        checked: the bundle of this version that gates have checked, so that nothing else is deployed; None to
            make it.
        log: log the parity report to the run that made the model; a plan changes nothing there.

    Raises:
        Quarantined: the model version is in quarantine.
        DeployError: the model is not found, or cannot be brought into the wanted form.
    """
    progress(f"Looking up {model_uri}")
    model = resolve(model_uri)
    refuse_quarantined(model)
    if checked is not None and checked.manifest.model.uri == model.uri:
        bundle, parity = checked, _parity(checked)
    else:
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
        **_servers(),
    ), bundle


def _servers() -> dict[str, str]:
    """The MLflow servers of this process, by the fields of a revision's record; files by their full path."""
    import mlflow

    return {
        "tracking_uri": _absolute(mlflow.get_tracking_uri()),
        "registry_uri": _absolute(mlflow.get_registry_uri()),
    }


def _absolute(uri: str) -> str:
    if uri.startswith("sqlite:///") and ":memory:" not in uri:
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return Path(uri).absolute().as_uri() if "://" not in uri and not uri.startswith("databricks") else uri


def make_bundle(
    model: ResolvedModel,
    spec: DeploymentSpec,
    progress: Progress,
    *,
    fetched: tuple[Path, ModelSource] | None = None,
    reuse: bool = False,
) -> tuple[Bundle, str]:
    """Fetch and convert a model; returns its bundle and one line on the parity check.

    Args:
        fetched: the model's files and their description; None to fetch them.
        reuse: take the bundle that was made of the same files with the same settings and rows, if there is one.
    """
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.validation import TRAINING, from_path, from_run
    from mlflow_deploy.serving.inprocess import open_in_process

    with mlflow_is_quiet(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        download, converted = Path(work) / "model", Path(work) / "servable"
        download.mkdir()
        converted.mkdir()
        if fetched is None:
            progress(f"Fetching {model.uri}")
        folder, source = fetched or fetch(model, download)
        validation: Validation | None = None
        if spec.parity.data:
            validation = from_path(spec.parity.data)
        elif source.run_id:
            progress("Fetching the validation rows of its run")
            validation = from_run(source.run_id)
        rows = from_path(spec.monitor.reference) if spec.monitor.reference else validation
        if rows is None and source.run_id:
            rows = from_run(source.run_id, contexts=TRAINING)
        key = bundle_key(source, spec, [each.frame if each else None for each in (validation, rows)])
        if reuse and (made := recall_bundle(key)):
            progress("Taking the bundle that was made before")
            return made, _parity(made)
        conversion = make_servable(
            folder,
            converted,
            format=spec.format,
            precision=spec.precision,
            device="gpu" if "gpu" in (spec.docker.device, spec.serving.device) else "cpu",
            validation=validation,
            tolerance=_tolerance(spec),
            progress=progress,
            opener=open_in_process,
        )
        reference = make_reference(conversion, rows, spec.capture, progress)
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
                PROFILE: reference.profile,
            },
            fallback=conversion.fallback,
            rejected=conversion.rejected,
            notes=(*conversion.notes, *reference.notes),
        )
        if key:
            keep(key, {"bundle": bundle.digest})
    return bundle, conversion.parity.summary if conversion.parity else ""


def _parity(bundle: Bundle) -> str:
    """One line on the parity check of a bundle that was made before."""
    document = bundle.document(PARITY)
    return str(document["summary"]) if document else ""


def _tolerance(spec: DeploymentSpec) -> Tolerance | None:
    """The tolerances the user gave, None when the precision decides."""
    from dataclasses import replace

    from mlflow_deploy.conversion.report import FP32, TOLERANCES

    known = {name: value for name, value in spec.parity.tolerances.items() if value is not None}
    return replace(TOLERANCES.get(spec.precision, FP32), **known) if known else None


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
