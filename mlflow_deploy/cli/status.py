"""`mlflow-deploy status`: what runs now."""

from __future__ import annotations

import sys

import click

from mlflow_deploy.cli.tables import show_deployments


@click.command()
@click.argument("name", required=False)
@click.option("-t", "--target", default="local", show_default=True, help="Target to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, target: str, as_json: bool) -> None:
    """Show all deployments, or the one called NAME. Exit status 3 when one of them is not ready."""
    from mlflow_deploy.lifecycle.release import describe
    from mlflow_deploy.targets import open_target

    place = open_target(target)
    records = [place.require(name)] if name else place.records()
    rows = [describe(place, record) for record in records]
    show_deployments(rows, as_json=as_json, revisions=name is not None)
    if any(row["status"] != "ready" for row in rows):
        sys.exit(3)
