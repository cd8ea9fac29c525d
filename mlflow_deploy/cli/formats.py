"""`mlflow-deploy formats`: which forms a model can have, and what each is worth on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlflow_deploy.conversion.survey import FormReport

_KILO = 1000


@click.command()
@click.argument("model_uri")
@click.option("--data", help="Parquet or CSV file with validation rows; default: those of the model's run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def formats(model_uri: str, data: str | None, as_json: bool) -> None:
    """Convert MODEL_URI to every form, compare each with the native model, and measure those that are equal.

    Nothing is deployed and nothing is kept. Latencies are lower quartiles through the scoring server's own
    code, without the network: parsing a request, computing, writing the answer.
    """
    from mlflow_deploy.conversion.survey import survey
    from mlflow_deploy.lifecycle.registry import fetch, resolve
    from mlflow_deploy.progress import live_progress, mlflow_is_quiet
    from mlflow_deploy.serving.inprocess import open_in_process

    with live_progress() as progress, mlflow_is_quiet(), tempfile.TemporaryDirectory() as work:
        download, converted = Path(work) / "model", Path(work) / "converted"
        download.mkdir()
        converted.mkdir()
        progress(f"Fetching {model_uri}")
        folder, source = fetch(resolve(model_uri), download)
        reports = survey(
            folder,
            converted,
            validation=validation_rows(data, source.run_id),
            progress=progress,
            opener=open_in_process,
        )
    if as_json:
        click.echo(json.dumps([as_document(report) for report in reports], indent=2))
        return
    show(reports)


def validation_rows(data: str | None, run_id: str) -> Any:
    """The rows in a file, or those of the run, or None."""
    from mlflow_deploy.conversion.validation import from_path, from_run

    if data:
        return from_path(data)
    return from_run(run_id) if run_id else None


def as_document(report: FormReport) -> dict[str, Any]:
    """A form as JSON: latencies in microseconds, `latency_us` of one row and `latency_us_64` of 64."""
    us = report.latency.us if report.latency else {}
    return {
        "format": report.format,
        "ok": report.ok,
        "reason": report.reason,
        "max_abs_diff": report.max_abs_diff,
        "label_agreement": report.label_agreement,
        "latency_us": us.get(1),
        "latency_us_64": us.get(64),
        "bytes": report.bytes,
    }


def show(reports: Sequence[FormReport]) -> None:
    """Print forms as a table: those that are equal first, then why the others are not possible."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("FORMAT", "1 ROW", "64 ROWS", "SIZE", "MAX DIFF", "LABELS", "FINDING"):
        table.add_column(
            column, overflow="fold", justify="left" if column in ("FORMAT", "FINDING") else "right"
        )
    for report in sorted(reports, key=lambda report: not report.ok):
        document = as_document(report)
        table.add_row(
            f"[green]{report.format}[/green]" if report.ok else f"[dim]{report.format}[/dim]",
            show_time(document["latency_us"]),
            show_time(document["latency_us_64"]),
            "" if report.bytes is None else f"{report.bytes / _KILO:,.0f} kB",
            "" if report.max_abs_diff is None else f"{report.max_abs_diff:.1e}",
            "" if report.label_agreement is None else f"{report.label_agreement:.2%}",
            escape(report.reason),
        )
    Console().print(table)


def show_time(us: float | None) -> str:
    """Microseconds for a person; empty for an unknown time."""
    if us is None:
        return ""
    return f"{us:,.0f} us" if us < _KILO else f"{us / _KILO:,.1f} ms"
