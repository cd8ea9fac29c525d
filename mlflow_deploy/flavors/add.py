"""Adds a form beside the native model of one folder, so that it is served without converting again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.conversion.existing import FORMS, flavor_name
from mlflow_deploy.errors import ModelNotFound
from mlflow_deploy.files import write_atomic

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.conversion import ParityReport, Tolerance, Validation


@dataclass(frozen=True)
class Added:
    """What `add_flavor` made.

    Attributes:
        uri: the model that has the form now: the folder, or the URI of the new logged model.
        form: the form that was added.
        parity: the proof that it answers like the native model.
        info: what MLflow says about the new logged model; None for a folder.
    """

    uri: str
    form: str
    parity: ParityReport | None
    info: ModelInfo | None = None


def _silent(message: str) -> None:
    """Report no progress."""


def add_flavor(
    model: str | Path,
    form: str,
    *,
    validation: Validation | None = None,
    tolerance: Tolerance | None = None,
    name: str | None = None,
    registered_model_name: str | None = None,
    progress: Callable[[str], None] = _silent,
) -> Added:
    """Convert a model, prove the form, and put it beside the native model in one model folder.

    `python_function` stays native, so nothing changes for those who load the model; a deployment with
    `-f FORM`, or with `format=auto`, takes the form with its proof and does not convert again.

    Args:
        model: a model folder, which is changed in place; or a URI, then a new model is logged whose tag
            `mlflow_deploy.parent` names the given one.
        form: onnx, torchscript, torch_export, savedmodel, tflite or pmml.
        validation: rows to compare on besides the input example and edge rows.
        tolerance: how far numbers may differ.
        name: name of the new logged model; by default the name of the given one.
        registered_model_name: register the new model as a version of this one.
        progress: receives one line per step.

    Raises:
        ConversionError: the model cannot have this form, or answers differently in it.
        ModelError: there is no such model, or it cannot be read.
    """
    from mlflow_deploy.flavors.lineage import log_folder
    from mlflow_deploy.flavors.make import mlflow_folder
    from mlflow_deploy.flavors.table import form_named

    form_named(form)
    local = mlflow_folder(model)
    if local is None:
        raise ModelNotFound(str(model), why="it is neither a model folder nor a URI")
    if Path(model) == local:
        parity = _add(local, form, validation, tolerance, progress)
        return Added(str(local), form, parity)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-flavor-") as work:
        folder = Path(work) / "model"
        shutil.copytree(local, folder)
        parity = _add(folder, form, validation, tolerance, progress)
        progress("logging the model")
        info = log_folder(
            folder,
            change=f"add {form}",
            parent=str(model),
            name=name,
            registered_model_name=registered_model_name,
        )
    return Added(info.model_uri, form, parity, info)


def _add(
    folder: Path,
    form: str,
    validation: Validation | None,
    tolerance: Tolerance | None,
    progress: Callable[[str], None],
) -> ParityReport | None:
    from mlflow_deploy.bundle import EXAMPLE, PARITY, SIGNATURE
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.native import read_meta
    from mlflow_deploy.flavors.base import Made, add_section, put_form
    from mlflow_deploy.flavors.make import source_of

    drop_form(folder, form)
    meta = read_meta(folder)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-flavor-") as work:
        done = make_servable(
            folder, Path(work), format=form, validation=validation, tolerance=tolerance, progress=progress
        )
        made = Made(
            content=done.content,
            servable=done.servable,
            source=source_of(folder, meta),
            documents={
                SIGNATURE: done.signature,
                EXAMPLE: done.example,
                PARITY: done.parity.to_dict() if done.parity else None,
            },
            notes=done.notes,
        )
        add_section(meta, form, put_form(folder, form, made))
    write_meta(folder, meta)
    return done.parity


def drop_form(folder: Path, name: str) -> None:
    """Remove a form from a model folder; does nothing when it is not there."""
    from mlflow_deploy.conversion.native import read_meta

    meta = read_meta(folder)
    if meta.flavors.pop(flavor_name(name), None) is not None:
        write_meta(folder, meta)
    shutil.rmtree(folder / FORMS / name, ignore_errors=True)


def write_meta(folder: Path, meta: Model) -> None:
    """Replace the MLmodel file of a folder in one step."""
    text: Any = meta.to_yaml()
    write_atomic(folder / "MLmodel", str(text).encode(), mode=0o644)
