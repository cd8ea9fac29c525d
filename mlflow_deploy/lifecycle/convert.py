"""Conversion on its own: a model URI to one form with its proof, kept as a bundle or logged as a model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.bundle import ModelSource, write_bundle
from mlflow_deploy.lifecycle.evidence import log_report, write_report
from mlflow_deploy.lifecycle.registry import fetch, resolve
from mlflow_deploy.progress import mlflow_is_quiet

if TYPE_CHECKING:
    from mlflow_deploy.conversion import Conversion
    from mlflow_deploy.conversion.validation import Validation


@dataclass(frozen=True)
class Converted:
    """What a conversion gave.

    Attributes:
        conversion: the servable with its evidence; its files are gone.
        latencies: microseconds by form (the new one and pyfunc) and by number of rows.
        bytes: size of the servable's files.
        native_bytes: size of the native model's files.
        bundle: folder of the bundle, None when none was wanted.
        logged: URI of the new logged model, empty when none was wanted.
        notes: what could not be done besides.
    """

    conversion: Conversion
    latencies: dict[str, dict[int, float]]
    bytes: int
    native_bytes: int
    bundle: Path | None = None
    logged: str = ""
    notes: tuple[str, ...] = ()


def convert(
    model_uri: str,
    form: str,
    *,
    precision: str = "fp32",
    data: str | None = None,
    output: Path | None = None,
    log: bool = False,
    progress: Callable[[str], None],
) -> Converted:
    """Bring a model into a form, and prove that it answers like the native one.

    Args:
        form: a form, or `auto` for the fastest that passes.
        precision: what the servable computes with.
        data: file with validation rows; None for those of the model's run.
        output: folder that the bundle is written into, beside the parity report as a page.
        log: log a new model that holds the form beside the native one, and the report to the model's run.

    Raises:
        DeployError: there is no such model, or it cannot be converted.
    """
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.validation import from_path, from_run
    from mlflow_deploy.serving.inprocess import open_in_process

    with mlflow_is_quiet(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        download, converted = Path(work) / "model", Path(work) / "servable"
        download.mkdir()
        converted.mkdir()
        progress(f"Fetching {model_uri}")
        folder, source = fetch(resolve(model_uri), download)
        validation: Validation | None = None
        if data or source.run_id:
            validation = from_path(data) if data else from_run(source.run_id)
        made = make_servable(
            folder,
            converted,
            format=form,
            precision=precision,
            validation=validation,
            progress=progress,
            opener=open_in_process,
            measure_all=True,
        )
        notes: tuple[str, ...] = ()
        bundle = _write(made, source, output) if output else None
        logged = ""
        if log and made.parity is not None:
            logged = log_form(made, folder, source, Path(work), model_uri, progress)
            unlogged = log_report(made.parity, source)
            notes = (unlogged,) if unlogged else ()
        return Converted(
            conversion=made,
            latencies={name: dict(latency.us) for name, latency in made.latencies.items()},
            bytes=_size(made.content),
            native_bytes=_size(folder),
            bundle=bundle,
            logged=logged,
            notes=notes,
        )


def _documents(made: Conversion) -> dict[str, Any]:
    return {
        "signature.json": made.signature,
        "example.json": made.example,
        "parity.json": made.parity.to_dict() if made.parity else None,
    }


def _write(made: Conversion, source: ModelSource, output: Path) -> Path:
    bundle = write_bundle(
        output,
        model=source,
        servable=made.servable,
        content=made.content,
        documents=_documents(made),
        fallback=made.fallback,
        rejected=made.rejected,
        notes=made.notes,
    )
    if made.parity is not None:
        # Beside the bundle: its digest covers the report itself, of which the page is a rendering.
        write_report(made.parity, output, model=source.name or source.uri)
    return bundle.path


def log_form(
    made: Conversion,
    folder: Path,
    source: ModelSource,
    work: Path,
    parent: str,
    progress: Callable[[str], None],
) -> str:
    """Log the model again with the form beside the native one; returns the new model's URI."""
    from mlflow_deploy.conversion.native import read_meta
    from mlflow_deploy.flavors.add import drop_form, write_meta
    from mlflow_deploy.flavors.base import Made, add_section, put_form
    from mlflow_deploy.flavors.lineage import log_folder

    progress("Logging the model")
    form = made.servable.kind
    both = work / "both"
    shutil.copytree(folder, both)
    drop_form(both, form)
    meta = read_meta(both)
    files = Made(
        content=made.content,
        servable=made.servable,
        source=source,
        documents=_documents(made),
        notes=made.notes,
    )
    add_section(meta, form, put_form(both, form, files))
    write_meta(both, meta)
    change = f"convert to {form} {made.servable.precision}"
    return str(log_folder(both, change=change, parent=parent).model_uri)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
