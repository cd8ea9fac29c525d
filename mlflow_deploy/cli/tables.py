"""Deployments as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

_COLORS = {"ready": "green", "unavailable": "yellow", "starting": "yellow", "failed": "red", "stopped": "red"}


def show_deployments(deployments: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print deployments as `lifecycle.release.describe` gives them."""
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
    for row in deployments:
        if row["detail"]:
            console.print(f"{row['name']}: {escape(row['detail'])}")
