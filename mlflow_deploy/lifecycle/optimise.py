"""Smaller models from logged ones, pruned, distilled or quantised, logged with parent and comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.registry import fetch, resolve
from mlflow_deploy.progress import mlflow_is_quiet

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.conversion import Conversion, Validation
    from mlflow_deploy.conversion.comparison import Comparison, Subject
    from mlflow_deploy.conversion.distillation import Distilled
    from mlflow_deploy.conversion.feeds import Array
    from mlflow_deploy.conversion.native import Tensor
    from mlflow_deploy.conversion.pruning import Pruned
    from mlflow_deploy.conversion.rows import Rows
    from mlflow_deploy.conversion.training import TrainingData

ARTIFACTS = "optimisation"
"""Folder of a run that holds the comparison as JSON, Markdown and HTML."""

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Optimised:
    """A smaller model that was logged.

    Attributes:
        model_uri: URI of the new logged model.
        parent: URI of the model that it was made from.
        run_id: run that holds the comparison.
        version: registered version, empty when it was not registered.
        comparison: both models side by side.
    """

    model_uri: str
    parent: str
    run_id: str
    version: str
    comparison: Comparison


def prune_logged(
    model_uri: str,
    *,
    rows: Array,
    truth: Array | None = None,
    ratio: float = 0.5,
    masks: bool = False,
    keep: tuple[str, ...] = (),
    training: TrainingData | None = None,
    name: str = "pruned",
    registered_model_name: str | None = None,
    progress: Progress = silent,
) -> tuple[Optimised, Pruned]:
    """Prune a logged PyTorch or Keras model and log the result, which names its parent.

    Args:
        rows: [rows, ...] to compare both on, not those that are trained on.
        truth: the true answers of the rows.
        ratio: share of the neurons (with `masks`: of the weights) that goes.
        masks: set small weights to zero instead: compression only, no faster.
        keep: layers that keep their width.
        training: fine-tuning afterwards; None for none.
        name: name of the new logged model.
        registered_model_name: register it as a new version of this model.

    Raises:
        ConversionError: the model cannot be pruned.
        ModelError: there is no such model, or it cannot be read.
    """
    from mlflow_deploy.conversion.comparison import compare_models
    from mlflow_deploy.conversion.pruning import mask, prune
    from mlflow_deploy.conversion.training import subject

    with _loaded(model_uri, progress) as parent:
        progress("Pruning")
        if masks:
            pruned = mask(parent.model, ratio=ratio)
        else:
            pruned = prune(parent.model, rows[:4], ratio=ratio, keep=keep, fine_tuning=training)
        progress("Comparing")
        comparison = compare_models(
            pruned.method,
            subject("original", parent.model),
            subject("pruned", pruned.model),
            {"": rows},
            truth=truth,
            notes=pruned.notes,
        )
        params = {"ratio": ratio, "epochs": len(pruned.losses)}
        done = _log_network(
            parent, pruned.model, comparison, rows, params, name, registered_model_name, progress
        )
    return done, pruned


def distill_logged(
    teacher_uri: str,
    student: Any,
    *,
    training: TrainingData,
    rows: Array,
    truth: Array | None = None,
    temperature: float = 4.0,
    mix: float = 0.7,
    name: str = "student",
    registered_model_name: str | None = None,
    progress: Progress = silent,
) -> tuple[Optimised, Distilled]:
    """Train a student from a logged teacher and log it, which names the teacher as its parent.

    Args:
        student: an untrained PyTorch module or Keras model, trained in place; or the URI of a logged one.
        training: rows with labels, and how to train.
        rows: [rows, ...] to compare both on, not those that are trained on.
        truth: the true answers of the rows.
        temperature: by which the logits of both are divided.
        mix: weight of the teacher's answers against the labels.

    Raises:
        ConversionError: the models do not fit each other.
        ModelError: there is no such model, or it cannot be read.
    """
    from mlflow_deploy.conversion.comparison import compare_models
    from mlflow_deploy.conversion.distillation import METHOD, distill
    from mlflow_deploy.conversion.training import subject

    with _loaded(teacher_uri, progress) as parent:
        if isinstance(student, str):
            with _loaded(student, progress) as pupil:
                student = pupil.model
        progress("Training the student")
        distilled = distill(parent.model, student, training, temperature=temperature, mix=mix)
        progress("Comparing")
        comparison = compare_models(
            METHOD,
            subject("teacher", parent.model),
            subject("student", student),
            {"": rows},
            truth=truth,
            notes=distilled.notes,
        )
        params = {"temperature": temperature, "mix": mix, "epochs": training.epochs}
        done = _log_network(parent, student, comparison, rows, params, name, registered_model_name, progress)
    return done, distilled


def quantize_logged(
    model_uri: str,
    *,
    precision: str = "int8",
    form: str = "onnx",
    validation: Validation | None = None,
    progress: Progress = silent,
) -> Optimised:
    """Convert a logged model to a lower precision and log it again with that form beside the native one.

    Args:
        precision: int8, fp16 or auto.
        form: onnx or tflite.
        validation: rows to calibrate and to compare on; None for those of the model's run.

    Raises:
        UnsupportedConversion: the model cannot have this precision.
        ParityFailed: it answers differently in it.
        ModelError: there is no such model, or it cannot be read.
    """
    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.comparison import compare_models
    from mlflow_deploy.conversion.evidence import gather
    from mlflow_deploy.conversion.native import load_native, read_meta
    from mlflow_deploy.conversion.validation import from_run
    from mlflow_deploy.lifecycle.convert import log_form

    with mlflow_is_quiet(), tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        folders = {key: Path(work) / key for key in ("model", "before", "after", "log")}
        for path in folders.values():
            path.mkdir()
        progress(f"Fetching {model_uri}")
        folder, source = fetch(resolve(model_uri), folders["model"])
        if validation is None and source.run_id:
            validation = from_run(source.run_id)
        before = make_servable(
            folder, folders["before"], format=form, validation=validation, progress=progress
        )
        after = make_servable(
            folder,
            folders["after"],
            format=form,
            precision=precision,
            validation=validation,
            progress=progress,
        )
        progress("Comparing")
        references = gather(load_native(folder, read_meta(folder)), validation).references
        chosen = next(
            (item for item in references if item.dataset.name == "validation rows"), references[0]
        ).dataset
        comparison = compare_models(
            f"{form} {after.servable.precision}",
            _served("fp32", before),
            _served(after.servable.precision, after),
            chosen.rows,
            truth=chosen.truth,
            notes=(after.parity.summary, *after.parity.notes) if after.parity else (),
        )
        uri = log_form(after, folder, source, folders["log"], model_uri, progress)
        run_id = _log_comparison(
            comparison, model_uri, source.model_id, {"precision": precision, "form": form}
        )
    return Optimised(uri, model_uri, run_id, "", comparison)


def input_tensor(signature: ModelSignature | None) -> Tensor:
    """The one tensor that a network takes, as its signature says; columns of numbers become a matrix.

    Raises:
        DataError: the signature has no or several tensors.
    """
    from mlflow_deploy.conversion.native import Tensor

    specs = signature.inputs.inputs if signature is not None and signature.inputs is not None else []
    if specs and not signature.inputs.is_tensor_spec():  # type: ignore[union-attr]
        return Tensor("float32", (-1, len(specs)))
    if len(specs) != 1:
        raise DataError(
            f"The model takes {len(specs)} tensors",
            hint="Only models of one tensor can be trained from a table; use the Python functions for others",
        )
    return Tensor(specs[0].type.name, tuple(int(size) for size in specs[0].shape), specs[0].name or "")


# --- parents -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parent:
    """A logged model that was loaded: its URI, MLflow id, folder and the framework's object."""

    uri: str
    model_id: str
    folder: Path
    model: Any


class _loaded:  # noqa: N801 - a context manager reads like a verb
    """Fetches and loads a logged model for the time of a `with` block."""

    def __init__(self, uri: str, progress: Progress) -> None:
        self._uri, self._progress = uri, progress

    def __enter__(self) -> _Parent:
        from mlflow_deploy.conversion.native import load_native, read_meta

        self._work = tempfile.TemporaryDirectory(prefix="mlflow-deploy-")
        try:
            self._progress(f"Fetching {self._uri}")
            with mlflow_is_quiet():
                folder, source = fetch(resolve(self._uri), Path(self._work.name))
                native = load_native(folder, read_meta(folder))
        except BaseException:
            self._work.cleanup()
            raise
        return _Parent(source.uri, source.model_id, folder, native.raw())

    def __exit__(self, *_: object) -> None:
        self._work.cleanup()


def _served(name: str, made: Conversion) -> Subject:
    """A servable as something to be measured: its graph, with the inputs ready."""
    from mlflow_deploy.conversion.comparison import Subject
    from mlflow_deploy.conversion.feeds import build_feeds, read_answer
    from mlflow_deploy.conversion.runners import open_graph

    graph = open_graph(made.servable, made.content)

    def answer(rows: Rows) -> Array:
        found = read_answer(made.servable, graph(build_feeds(made.servable.feeds, rows)))
        return np.asarray(next(iter(found.arrays.values())))

    def timed(rows: Rows) -> Callable[[], object]:
        feeds = build_feeds(made.servable.feeds, rows)
        return lambda: graph(feeds)

    content = b"".join(path.read_bytes() for path in sorted(made.content.rglob("*")) if path.is_file())
    return Subject(name, answer, content, 0, timed)


# --- logging -----------------------------------------------------------------------------------------------


def _log_network(
    parent: _Parent,
    model: Any,
    comparison: Comparison,
    rows: Array,
    params: dict[str, Any],
    name: str,
    registered_model_name: str | None,
    progress: Progress,
) -> Optimised:
    """Log a PyTorch or Keras model with its parent's signature, requirements and code."""
    import mlflow
    from mlflow.models import Model

    from mlflow_deploy.conversion.training import framework
    from mlflow_deploy.flavors.lineage import CHANGE, PARENT

    progress("Logging the model")
    meta = Model.load(str(parent.folder / "MLmodel"))
    requirements = (parent.folder / "requirements.txt").read_text(encoding="utf-8").split("\n")
    code = parent.folder / "code"
    settings: dict[str, Any] = {
        "name": name,
        "signature": meta.signature,
        "input_example": rows[:2],
        "pip_requirements": [line for line in requirements if line.strip()],
        "code_paths": [str(path) for path in sorted(code.iterdir())] if code.is_dir() else None,
        "registered_model_name": registered_model_name,
        "tags": {PARENT: parent.uri, CHANGE: comparison.method},
        "params": {key: str(value) for key, value in params.items()},
    }
    run_id = ""
    with mlflow_is_quiet(), _run() as run:
        run_id = _log_comparison(comparison, parent.uri, parent.model_id, params, run.info.run_id)
        if framework(model) == "torch":
            info: ModelInfo = mlflow.pytorch.log_model(model, serialization_format="pickle", **settings)
        else:
            info = mlflow.tensorflow.log_model(
                model, **{key: settings[key] for key in settings if key != "params"}
            )
    version = "" if info.registered_model_version is None else str(info.registered_model_version)
    return Optimised(info.model_uri, parent.uri, run_id, version, comparison)


class _run:  # noqa: N801 - a context manager reads like a noun
    """The active run, or a new one that ends with the block."""

    def __enter__(self) -> Any:
        import mlflow

        active = mlflow.active_run()
        self._own = active is None
        return active if active is not None else mlflow.start_run()

    def __exit__(self, kind: object, *_: object) -> None:
        import mlflow

        if self._own:
            mlflow.end_run("FINISHED" if kind is None else "FAILED")


def _log_comparison(
    comparison: Comparison, parent: str, model_id: str, params: dict[str, Any], run_id: str = ""
) -> str:
    """Log the table, the numbers and the parent to a run; returns its id."""
    import mlflow
    from mlflow.entities import LoggedModelInput

    from mlflow_deploy.flavors.lineage import CHANGE, PARENT

    client = mlflow.MlflowClient()
    with _run() as run:
        run_id = run_id or run.info.run_id
        folder = f"{ARTIFACTS}/{comparison.after.name}"
        client.log_dict(run_id, comparison.to_dict(), f"{folder}/comparison.json")
        client.log_text(run_id, comparison.to_markdown(), f"{folder}/comparison.md")
        client.log_text(run_id, comparison.to_html(), f"{folder}/comparison.html")
        for key, value in (*params.items(), (PARENT, parent), (CHANGE, comparison.method)):
            client.set_tag(
                run_id, key if key.startswith("mlflow_deploy.") else f"mlflow_deploy.{key}", str(value)
            )
        for measured in (comparison.before, comparison.after):
            numbers = {"bytes": float(measured.bytes), **measured.metrics}
            numbers |= {f"latency_us_{rows}": us for rows, us in measured.latency_us.items()}
            for key, number in numbers.items():
                client.log_metric(run_id, f"{measured.name}/{key}", number)
        if model_id:
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    return run_id
