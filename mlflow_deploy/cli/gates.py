"""`mlflow-deploy gates run`: would a version pass the gates of a stage? For people and for CI."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mlflow_deploy.lifecycle.gates.report import GateReport

_COLORS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@click.group()
def gates() -> None:
    """Ask the gates that a version must pass before it is promoted."""


@gates.command()
@click.argument("model_uri")
@click.option("--stage", required=True, help="Stage of the policy whose gates are asked.")
@click.option("--policy", type=click.Path(path_type=Path), help="Policy file; default: lifecycle.yaml.")
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Also write the report as JUnit XML.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, evidence included.")
def run(model_uri: str, stage: str, policy: Path | None, junit: Path | None, as_json: bool) -> None:
    """Ask the gates of a stage about MODEL_URI; exit status 1 when it may not go there. Nothing is changed."""
    from mlflow_deploy.lifecycle.gates.run import check_version
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        report = check_version(model_uri, stage, policy=policy, progress=progress)
    if junit is not None:
        junit.write_text(report.to_junit(), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, default=str))
    else:
        show_report(report)
    if not report.ok:
        sys.exit(1)


def show_report(report: GateReport) -> None:
    """Print the table of the gates and the verdict."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    console.print(_table(report))
    verdict = "[green]may go to[/green]" if report.ok else "[red]may not go to[/red]"
    console.print(f"{escape(report.model_uri)} {verdict} {report.stage}")


def _table(report: GateReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("GATE", "OUTCOME", "SECONDS", "FINDING"):
        table.add_column(column, overflow="fold")
    for each in report.results:
        optional = " (optional)" if each.optional and each.outcome != "passed" else ""
        table.add_row(
            escape(each.name),
            f"[{_COLORS[each.outcome]}]{each.outcome}[/{_COLORS[each.outcome]}]{optional}",
            f"{each.seconds:.1f}",
            escape(each.summary),
        )
    return table
