"""`mlflow-deploy security audit`: is a model harmless to load? Nothing of it is loaded to find out."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_deploy.security import AuditReport


@click.group()
def security() -> None:
    """Look whether models are harmless."""


@security.command()
@click.argument("path_or_uri")
@click.option("--flavor", help="Allow the globals of this MLflow flavor; default: those that MLmodel names.")
@click.option(
    "--accept", multiple=True, metavar="RULE", help="Do not count findings of this rule; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(path_or_uri: str, flavor: str | None, accept: tuple[str, ...], as_json: bool) -> None:
    """Audit the model folder, file or model URI PATH_OR_URI; exit status 1 when something is found.

    Nothing is imported, called, unpacked or installed.
    """
    from mlflow_deploy.lifecycle.registry import fetch, resolve
    from mlflow_deploy.progress import mlflow_is_quiet
    from mlflow_deploy.security import audit_path

    if Path(path_or_uri).exists():
        report = audit_path(path_or_uri, flavor=flavor, accept=accept)
    else:
        with tempfile.TemporaryDirectory() as work, mlflow_is_quiet():
            folder, _ = fetch(resolve(path_or_uri), Path(work))
            report = audit_path(folder, flavor=flavor, accept=accept)
    if as_json:
        click.echo(report.to_json())
    else:
        _show(report, path_or_uri)
    if not report.ok:
        sys.exit(1)


def _show(report: AuditReport, asked: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    looked = f"{report.files} files and members, {report.pickles} pickles"
    if report.findings:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("FILE", "SEVERITY", "RULE", "FINDING", "WHY", "WHAT TO DO"):
            table.add_column(column, overflow="fold")
        for finding in report.findings:
            color = "dim" if finding.accepted else "red" if finding.severity == "critical" else "yellow"
            severity = "accepted" if finding.accepted else finding.severity
            table.add_row(
                escape(finding.path),
                f"[{color}]{severity}[/{color}]",
                finding.rule,
                escape(finding.what),
                escape(finding.why),
                escape(finding.hint),
            )
        console.print(table)
    verdict = "[green]nothing to refuse[/green]" if report.ok else "[red]refused[/red]"
    console.print(f"{escape(asked)}: {verdict} ({looked})")
