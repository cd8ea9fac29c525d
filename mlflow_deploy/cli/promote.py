"""`mlflow-deploy promote`: plan, gates, deployment, stage and alias in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mlflow_deploy.lifecycle.promotion import Move, Promotion

_WORDS = {
    "planned": "[yellow]planned, nothing was changed[/yellow]",
    "promoted": "[green]promoted[/green]",
    "refused": "[red]refused, nothing was changed[/red]",
    "failed": "[red]failed[/red]",
}


@click.command()
@click.argument("model")
@click.argument("version")
@click.option("--to", "stage", required=True, help="Stage of the policy, such as Production.")
@click.option("--policy", type=click.Path(path_type=Path), help="Policy file; default: lifecycle.yaml.")
@click.option("--dry-run", is_flag=True, help="Show the plan and ask the gates, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, evidence of the gates included.")
def promote(model: str, version: str, stage: str, policy: Path | None, dry_run: bool, as_json: bool) -> None:
    """Promote VERSION of MODEL to a stage: ask its gates, deploy it, move MLflow's stage and the alias.

    VERSION is a number, an MLflow stage, or an alias as @NAME. Exit status 1 when it was refused or failed:
    deployment, stages and aliases are as before then, and the reason is on the version's page.
    """
    from mlflow_deploy.lifecycle.promote import promote as do
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        found = do(model, version, stage, policy=policy, dry_run=dry_run, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, default=str))
    else:
        _show(found)
    if not found.ok:
        sys.exit(1)


def _show(promotion: Promotion) -> None:
    from rich.console import Console
    from rich.markup import escape

    from mlflow_deploy.cli.gates import show_report

    console, plan = Console(), promotion.plan
    console.print(f"[bold]{escape(plan.model_uri)}[/bold] to {plan.stage}")
    _moves(console, (*plan.registry, *plan.changes))
    for number, action in enumerate(plan.actions, 1):
        console.print(f"{number}. {escape(action)}")
    for note in plan.notes:
        console.print(f"Note: {escape(note)}")
    if promotion.gates is not None:
        show_report(promotion.gates)
    if promotion.deployment:
        deployed = promotion.deployment
        console.print(f"{plan.deployment} serves revision {deployed['revision']} at {deployed['url']}")
    for note in promotion.notes:
        console.print(f"Note: {escape(note)}")
    console.print(_WORDS[promotion.outcome] + (f": {escape(promotion.reason)}" if promotion.reason else ""))


def _moves(console: Console, moves: tuple[Move, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not moves:
        console.print("Stage, alias and deployment are so already.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("CHANGE", "NOW", "THEN"):
        table.add_column(column, overflow="fold")
    for move in moves:
        table.add_row(escape(move.what), escape(_text(move.old)), escape(_text(move.new)))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
