"""`mlflow-deploy settings`: every `-C` key with its meaning."""

from __future__ import annotations

import dataclasses
import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the table of the documentation.")
def settings(as_json: bool, markdown: bool) -> None:
    """List the settings that `mlflow deployments create` and `update` take with -C key=value."""
    from mlflow_deploy.config import describe_settings

    rows = describe_settings()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif markdown:
        click.echo("| setting | type | default | meaning |\n|---|---|---|---|")
        for row in rows:
            kind = row.type.replace("|", "\\|")
            click.echo(f"| `{row.key}` | {kind} | {row.default} | {row.doc} |")
    else:
        width = max(len(row.key) for row in rows)
        for row in rows:
            click.echo(f"{row.key:<{width}}  {row.doc} (type {row.type}, default {row.default})")
