"""`mlflow-deploy plan`: what an update would change, before it is made."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy.cli.options import config_options, parse_pairs, target_option

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.plan import UpdatePlan


@click.command()
@click.argument("name")
@config_options
@target_option
@click.option(
    "--no-convert", is_flag=True,
    help="Do not fetch and convert the model; its bundle, form and image stay unknown then.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    name: str,
    model_uri: str | None,
    flavor: str | None,
    pairs: tuple[str, ...],
    target: str | None,
    no_convert: bool,
    as_json: bool,
) -> None:
    """Show what `mlflow deployments update` of NAME with the same options would change.

    Nothing is changed on the target. The model is converted, as the update would do it, and its bundle is kept
    in the store of this machine, so that the update finds it there.
    """
    from mlflow_deploy.lifecycle.plan import plan_update
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.finder import find_target

    with live_progress() as progress:
        found = plan_update(
            find_target(name, target),
            name,
            model_uri,
            flavor=flavor,
            config=parse_pairs(pairs),
            convert=not no_convert,
            progress=progress,
        )
    if as_json:
        document = {"changed": bool(found.changes), **dataclasses.asdict(found)}
        click.echo(json.dumps(document, indent=2))
        return
    _show(found)


def _show(plan: UpdatePlan) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not plan.changes:
        console.print(f"{plan.name} on {plan.target}: revision {plan.stable} already serves exactly this.")
    else:
        console.print(
            f"[bold]{plan.name}[/bold] on {plan.target}: revision {plan.stable} -> {plan.revision} "
            f"by strategy {plan.strategy}"
        )
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("CHANGE", "NOW", "THEN"):
            table.add_column(column, overflow="fold")
        for change in plan.changes:
            table.add_row(change.key, escape(_text(change.old)), escape(_text(change.new)))
        console.print(table)
        for number, action in enumerate(plan.actions, 1):
            console.print(f"{number}. {escape(action)}")
    for note in plan.notes:
        console.print(f"Note: {escape(note)}")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "unknown" if value is None else str(value)
