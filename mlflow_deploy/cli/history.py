"""`mlflow-deploy history`: who changed a deployment or a model, when, from what to what, and how it ended."""

from __future__ import annotations

import json
from typing import Any

import click

from mlflow_deploy.cli.options import target_option

_COLORS = {"done": "green", "started": "yellow", "rolled_back": "red", "failed": "red"}


@click.command()
@click.argument("name")
@click.option("--model", "is_model", is_flag=True, help="NAME is a registered model, whatever is deployed.")
@target_option
@click.option("-n", "--lines", type=click.IntRange(min=1), help="Show only the last N changes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(name: str, is_model: bool, target: str | None, lines: int | None, as_json: bool) -> None:
    """Show the changes of the deployment or the registered model NAME, the oldest first.

    Those of a deployment that was removed stay. Of a model they are its versions, stages and aliases in the
    registry, and its releases on all targets that were used from this machine.
    """
    from mlflow_deploy.errors import DeploymentNotFound, InvalidName, ModelNotFound
    from mlflow_deploy.lifecycle.history import whole_history
    from mlflow_deploy.lifecycle.records.recorder import catch_up
    from mlflow_deploy.targets.finder import find_archive

    if is_model:
        _show_model(name, target, lines, as_json=as_json)
        return
    try:
        place = find_archive(name, target)
        if busy := catch_up(place, name):
            click.echo(busy, err=True)
        changes = whole_history(place, name)[-(lines or 0) :]
    except (DeploymentNotFound, InvalidName) as error:
        try:
            _show_model(name, target, lines, as_json=as_json)
        except ModelNotFound:
            raise error from None
        return
    if as_json:
        click.echo(json.dumps(changes, indent=2))
    elif changes:
        _show(changes)
    else:
        click.echo(f"Deployment {name} was made by a version that kept no history.")


def _show_model(name: str, target: str | None, lines: int | None, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mlflow_deploy.lifecycle.history import model_history
    from mlflow_deploy.targets.finder import used_targets

    events, silent = model_history(used_targets(target), name)
    events = events[-(lines or 0) :]
    for line in silent:
        click.echo(f"Not known: {line}", err=True)
    if as_json:
        click.echo(json.dumps(events, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("WHEN", "WHO", "WHERE", "WHAT", "FROM", "TO", "OUTCOME"):
        table.add_column(column, overflow="fold")
    for each in events:
        since = f"{each['not_before']} .. " if each["not_before"] else ""
        table.add_row(
            since + each["at"],
            escape(each["by"] or "unknown"),
            escape(each["where"]),
            escape(f"{each['kind']} {each['what']}"),
            escape(each["before"]),
            escape(each["after"]),
            escape(each["outcome"] + _because(each["reason"])),
        )
    Console().print(table)


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
            str(change["number"] or ""),
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
