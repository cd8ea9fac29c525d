"""`mlflow-deploy convert`: one model into one form, with the proof and what it gained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mlflow_deploy.cli.formats import show_time
from mlflow_deploy.config import Format, Precision

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.convert import Converted

_KILO = 1000


@click.command()
@click.argument("model_uri")
@click.option("--to", "form", type=click.Choice(get_args(Format)), required=True, help="The form to make.")
@click.option(
    "--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True,
    help="What the servable computes with; auto takes the fastest that passes the parity check.",
)  # fmt: skip
@click.option("--data", help="Parquet or CSV file with validation rows; default: those of the model's run.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    help="Write the bundle and the parity report into this folder.",
)  # fmt: skip
@click.option(
    "--log", is_flag=True,
    help="Log a new model that holds the form beside the native one, and the parity report to the model's run.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(
    model_uri: str, form: str, precision: str, data: str | None, output: Path | None, log: bool, as_json: bool
) -> None:
    """Convert MODEL_URI and prove that it answers like the native model.

    Nothing is deployed. A form in which the model answers differently is an error that names the rows.
    """
    from mlflow_deploy.lifecycle.convert import convert as run
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        done = run(model_uri, form, precision=precision, data=data, output=output, log=log, progress=progress)
    if as_json:
        click.echo(json.dumps(as_document(done), indent=2))
    else:
        _show(done)


def as_document(done: Converted) -> dict[str, Any]:
    """A conversion as JSON; latencies are microseconds for one row and for 64."""
    made = done.conversion
    return {
        "format": made.servable.kind,
        "precision": made.servable.precision,
        "summary": made.parity.summary if made.parity else made.fallback,
        "parity": made.parity.to_dict() if made.parity else None,
        "rejected": made.rejected,
        "latency_us": {name: times.get(1) for name, times in done.latencies.items()},
        "latency_us_64": {name: times.get(64) for name, times in done.latencies.items()},
        "bytes": done.bytes,
        "native_bytes": done.native_bytes,
        "bundle": str(done.bundle) if done.bundle else None,
        "logged": done.logged or None,
        "notes": [*made.notes, *done.notes],
    }


def _show(done: Converted) -> None:
    from rich.console import Console
    from rich.table import Table

    made = done.conversion
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "1 ROW", "64 ROWS", "SIZE"):
        table.add_column(column, justify="right" if column else "left")
    rows = {"native": ("pyfunc", done.native_bytes)}
    if made.servable.kind != "pyfunc":
        rows[f"{made.servable.kind} {made.servable.precision}"] = (made.servable.kind, done.bytes)
    for name, (key, size) in rows.items():
        times = done.latencies.get(key, {})
        table.add_row(name, show_time(times.get(1)), show_time(times.get(64)), f"{size / _KILO:,.0f} kB")
    Console().print(table)
    click.echo(made.parity.summary if made.parity else f"pyfunc: {made.fallback or 'as asked for'}")
    for form, why in made.rejected.items():
        click.echo(f"{form} was not taken: {why}")
    for note in (*made.notes, *done.notes):
        click.echo(f"Note: {note}")
    if done.bundle:
        click.echo(f"Bundle: {done.bundle}")
    if done.logged:
        click.echo(f"Logged: {done.logged}")
