"""Deployments as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

_COLORS = {"ready": "green", "unavailable": "yellow", "starting": "yellow", "failed": "red", "stopped": "red"}


def show_deployments(
    deployments: Sequence[dict[str, Any]], *, as_json: bool, revisions: bool = False
) -> None:
    """Print deployments as `lifecycle.release.describe` gives them, with `revisions` each revision too."""
    if as_json:
        click.echo(json.dumps(list(deployments), indent=2))
        return
    if not deployments:
        click.echo(
            "No deployments. Make one with: mlflow deployments create -t local --name NAME -m MODEL_URI"
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAME", "STATUS", "REV", "MODEL", "FORMAT", "URL"):
        table.add_column(column, overflow="fold")
    for row in deployments:
        color = _COLORS[row["status"]]
        table.add_row(
            row["name"],
            f"[{color}]{row['status']}[/{color}]",
            str(row["revision"]),
            escape(row["resolved_uri"]),
            row["format"],
            row["url"],
        )
    console = Console()
    console.print(table)
    if revisions:
        for row in deployments:
            console.print()
            console.print(_revisions(row))
    for row in deployments:
        if row["detail"]:
            console.print(f"{row['name']}: {escape(row['detail'])}")


def _revisions(deployment: dict[str, Any]) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("REV", "TRAFFIC", "STATUS", "MODEL", "FORMAT", "SINCE"):
        table.add_column(column, overflow="fold")
    for row in deployment["revisions"]:
        color = _COLORS[row["status"]] if row["traffic"] else "dim"
        table.add_row(
            str(row["revision"]),
            f"{row['traffic']} %",
            f"[{color}]{row['status']}[/{color}]",
            escape(row["model_uri"]),
            row["format"],
            row["created_at"],
        )
    return table
