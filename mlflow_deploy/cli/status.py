"""`mlflow-deploy status`: what runs now."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from mlflow_deploy.cli.tables import deployments_view, show_deployments
from mlflow_deploy.errors import DeployError

Rows = list[dict[str, Any]]


@click.command()
@click.argument("name", required=False)
@click.option("-t", "--target", help="Target to look at; all that were used from this machine when left out.")
@click.option("-w", "--watch", is_flag=True, help="Go on showing what changes, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS",
    help="How often --watch looks.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line for each change.")
def status(name: str | None, target: str | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show all deployments, or the one called NAME. Exit status 3 when one of them, or a target, is not ready.

    The column UPDATE tells how the last update stands: started, done or rolled_back.
    """
    from mlflow_deploy.lifecycle.release import describe
    from mlflow_deploy.targets.finder import find_target, used_targets

    places = [find_target(name, target)] if name else used_targets(target)
    silent: dict[str, str] = {}

    def look() -> Rows:
        rows: Rows = []
        for place in places:
            try:
                records = [place.require(name)] if name else place.records()
                rows += [describe(place, record) for record in records]
            except DeployError as error:
                if len(places) == 1:
                    raise
                # The other targets are shown all the same.
                if silent.get(place.name) != error.text:
                    click.echo(f"Target {place.name} does not answer: {error.text}", err=True)
                silent[place.name] = error.text
        return rows

    if watch:
        _watch(look, interval, as_json=as_json, revisions=name is not None)
        return
    rows = look()
    show_deployments(rows, as_json=as_json, revisions=name is not None)
    if silent or any(row["status"] != "ready" for row in rows):
        sys.exit(3)


def _watch(look: Callable[[], Rows], interval: float, *, as_json: bool, revisions: bool) -> None:
    """Show rows again and again until the user interrupts: live on a terminal, elsewhere what changed."""
    from rich.console import Console
    from rich.live import Live

    console, shown = Console(), None
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    try:
        if live is not None:
            live.start()
        while True:
            rows = look()
            if live is not None:
                live.update(deployments_view(rows, revisions=revisions), refresh=True)
            elif rows != shown and as_json:
                click.echo(json.dumps(rows))
            elif rows != shown:
                console.print(deployments_view(rows, revisions=revisions))
            shown = rows
            time.sleep(interval)
    except KeyboardInterrupt:
        return
    finally:
        if live is not None:
            live.stop()
