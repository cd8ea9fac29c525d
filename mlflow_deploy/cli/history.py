"""`mlflow-deploy history`: who changed a deployment, when, from what to what, and how it ended."""

from __future__ import annotations

import json
from typing import Any

import click

from mlflow_deploy.cli.options import target_option

_COLORS = {"done": "green", "started": "yellow", "rolled_back": "red"}


@click.command()
@click.argument("name")
@target_option
@click.option("-n", "--lines", type=click.IntRange(min=1), help="Show only the last N changes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(name: str, target: str | None, lines: int | None, as_json: bool) -> None:
    """Show the changes of the deployment NAME, the oldest first; the last 100 are kept."""
    from mlflow_deploy.lifecycle.history import history as read_history
    from mlflow_deploy.targets.finder import find_target

    changes = read_history(find_target(name, target), name)[-(lines or 0) :]
    if as_json:
        click.echo(json.dumps(changes, indent=2))
        return
    if not changes:
        click.echo(f"Deployment {name} was made by a version that kept no history.")
        return
    _show(changes)


def _show(changes: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("#", "WHEN", "WHO", "WHAT", "REV", "MODEL", "TRAFFIC", "OUTCOME"):
        table.add_column(column, overflow="fold")
    for change in changes:
        color = _COLORS[change["outcome"]]
        table.add_row(
            str(change["number"]),
            change["at"],
            escape(change["by"]),
            change["action"],
            str(change["revision"] or ""),
            escape(change["model"]),
            _traffic(change),
            f"[{color}]{change['outcome']}[/{color}]" + escape(_because(change["reason"])),
        )
    Console().print(table)


def _traffic(change: dict[str, Any]) -> str:
    before, after = (
        " ".join(f"{number}={weight}" for number, weight in change[side].items())
        for side in ("before", "after")
    )
    return after if before == after else f"{before or 'none'} -> {after}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
