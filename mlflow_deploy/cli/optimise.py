"""`mlflow-deploy optimise`: smaller models from logged ones, each with a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from mlflow_deploy.conversion import Validation
    from mlflow_deploy.conversion.training import TrainingData
    from mlflow_deploy.lifecycle.optimise import Optimised


@click.group()
def optimise() -> None:
    """Make a logged model smaller and faster: prune, distill, quantize.

    Each command logs a new model that names its parent, and a table of both: size, latency, metric.
    """


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which rows are compared on and trained on."""
    options = [
        click.option(
            "--data", help="Parquet or CSV file with rows to compare on; default: the run's validation rows."
        ),
        click.option("--train", help="Parquet or CSV file with rows to train on."),
        click.option("--label", help="Column with the true answers; default: the one that the model lacks."),
        click.option(
            "--epochs", type=click.IntRange(min=0), default=3, show_default=True,
            help="Times that all rows are seen.",
        ),
        click.option(
            "--learning-rate", type=float, default=1e-3, show_default=True, help="Of the optimiser Adam."
        ),
        click.option("--register", "registered", metavar="NAME", help="Register it under this name."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@optimise.command()
@click.argument("model_uri")
@click.option(
    "--ratio", type=float, default=0.5, show_default=True, help="Share of each layer's neurons that goes."
)
@click.option("--masks", is_flag=True, help="Set small weights to zero instead: compression only, no faster.")
@click.option("--keep", multiple=True, metavar="LAYER", help="Leave this layer as wide as it is.")
@_data_options
def prune(
    model_uri: str,
    ratio: float,
    masks: bool,
    keep: tuple[str, ...],
    data: str | None,
    train: str | None,
    label: str | None,
    epochs: int,
    learning_rate: float,
    registered: str | None,
    as_json: bool,
) -> None:
    """Remove neurons and channels from MODEL_URI, a PyTorch or Keras model, and log the result.

    With --train the smaller model is trained on for --epochs.
    """
    from mlflow_deploy.lifecycle.optimise import prune_logged
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        rows, truth = _rows(model_uri, data, label)
        training = _training(model_uri, train, label, epochs, learning_rate) if train and epochs else None
        done, pruned = prune_logged(
            model_uri,
            rows=rows,
            truth=truth,
            ratio=ratio,
            masks=masks,
            keep=keep,
            training=training,
            registered_model_name=registered,
            progress=progress,
        )
    more = {"widths": {name: list(widths) for name, widths in pruned.widths.items()}, "kept": pruned.kept}
    _show(done, as_json=as_json, more=more)


@optimise.command()
@click.argument("teacher_uri")
@click.argument("student_uri")
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Divides the logits of both.")
@click.option(
    "--mix", type=float, default=0.7, show_default=True, help="Weight of the teacher against the labels."
)
@_data_options
def distill(
    teacher_uri: str,
    student_uri: str,
    temperature: float,
    mix: float,
    data: str | None,
    train: str | None,
    label: str | None,
    epochs: int,
    learning_rate: float,
    registered: str | None,
    as_json: bool,
) -> None:
    """Train STUDENT_URI, a logged and smaller model, to answer like TEACHER_URI, and log the result."""
    from mlflow_deploy.lifecycle.optimise import distill_logged
    from mlflow_deploy.progress import live_progress

    if not train:
        raise click.UsageError("Give the rows to train on with --train FILE.")
    with live_progress() as progress:
        rows, truth = _rows(teacher_uri, data, label)
        done, distilled = distill_logged(
            teacher_uri,
            student_uri,
            training=_training(teacher_uri, train, label, epochs, learning_rate),
            rows=rows,
            truth=truth,
            temperature=temperature,
            mix=mix,
            registered_model_name=registered,
            progress=progress,
        )
    _show(done, as_json=as_json, more={"losses": list(distilled.losses)})


@optimise.command()
@click.argument("model_uri")
@click.option(
    "--precision", type=click.Choice(["int8", "fp16", "auto"]), default="int8", show_default=True,
    help="auto takes the fastest that passes the parity check.",
)  # fmt: skip
@click.option(
    "--to", "form", type=click.Choice(["onnx", "tflite"]), default="onnx", show_default=True, help="The form."
)
@click.option(
    "--data", help="Parquet or CSV file to calibrate and compare on; default: the validation rows of the run."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quantize(model_uri: str, precision: str, form: str, data: str | None, as_json: bool) -> None:
    """Log MODEL_URI again with a form in lower precision beside the native one."""
    from mlflow_deploy.conversion.validation import from_path
    from mlflow_deploy.lifecycle.optimise import quantize_logged
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        validation: Validation | None = from_path(data) if data else None
        done = quantize_logged(
            model_uri, precision=precision, form=form, validation=validation, progress=progress
        )
    _show(done, as_json=as_json, more={})


# --- steps -------------------------------------------------------------------------------------------------


def _rows(model_uri: str, path: str | None, label: str | None) -> tuple[np.ndarray[Any, Any], Any]:
    """Rows as the model takes them, and the true answers or None."""
    import mlflow

    from mlflow_deploy.conversion.rows import tensors_from
    from mlflow_deploy.conversion.validation import column_beyond, from_path, from_run
    from mlflow_deploy.errors import DataError
    from mlflow_deploy.lifecycle.optimise import input_tensor

    info = mlflow.models.get_model_info(model_uri)
    found = from_path(path, label=label) if path else (from_run(info.run_id) if info.run_id else None)
    if found is None or found.problem:
        raise DataError(
            f"{model_uri} has no rows to compare on",
            why=found.problem if found else "its run has no validation rows",
            hint="Give a Parquet or CSV file with --data",
        )
    frame, column = found.frame, label or found.label
    tensor = input_tensor(info.signature)
    if column is None:
        column = column_beyond(frame, tensor.shape)
    truth = None if column is None else frame[column].to_numpy()
    inputs = frame if column is None else frame.drop(columns=[column])
    return tensors_from(inputs, [tensor])[tensor.name], truth


def _training(
    model_uri: str, path: str, label: str | None, epochs: int, learning_rate: float
) -> TrainingData:
    from mlflow_deploy.conversion.training import TrainingData
    from mlflow_deploy.errors import DataError

    rows, truth = _rows(model_uri, path, label)
    if truth is None:
        raise DataError(f"{path} has no column with the true answers", hint="Name it with --label")
    return TrainingData(rows, truth, epochs=epochs, learning_rate=learning_rate)


def _show(done: Optimised, *, as_json: bool, more: dict[str, Any]) -> None:
    comparison = done.comparison
    if as_json:
        document = {
            "model_uri": done.model_uri,
            "parent": done.parent,
            "run_id": done.run_id,
            "version": done.version or None,
            "comparison": comparison.to_dict(),
            **more,
        }
        click.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (comparison.method, comparison.before.name, comparison.after.name, "gain"):
        table.add_column(column, justify="left" if column == comparison.method else "right")
    for line in comparison.lines():
        table.add_row(*line)
    Console().print(table)
    for note in comparison.notes:
        click.echo(f"Note: {note}")
    version = f", version {done.version}" if done.version else ""
    click.echo(f"Logged: {done.model_uri}{version}")
