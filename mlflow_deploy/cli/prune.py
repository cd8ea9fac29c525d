"""`mlflow-deploy prune`: show and remove what killed commands left and what no deployment needs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.prune import PruneReport

_MEGA = 1_000_000


@click.command()
@click.option("-t", "--target", help="Target to look at; all that were used from this machine when left out.")
@click.option("--bundles", is_flag=True, help="Also bundles that no deployment refers to.")
@click.option("--images", is_flag=True, help="Also images that no deployment refers to.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="HOURS",
    help="Leave bundles and images that are younger.",
)  # fmt: skip
@click.option("-y", "--yes", is_flag=True, help="Remove what was found.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(
    target: str | None, bundles: bool, images: bool, older_than: float, yes: bool, as_json: bool
) -> None:
    """Show what no deployment needs; with --yes, remove it.

    Looks for containers, networks, volumes, processes and folders whose deployment has no record or does not
    want them. Exit status 3 when something was skipped because another command is working on it.
    """
    from mlflow_deploy.lifecycle.prune import prune as find
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.finder import used_targets

    targets = used_targets(target)
    others = [each for each in used_targets() if each.name not in {one.name for one in targets}]
    with live_progress() as progress:
        report = find(
            targets,
            remove=yes,
            bundles=bundles,
            images=images,
            older_than_hours=older_than,
            referring=others,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(_plain(report), indent=2))
    else:
        _show(report)
    if report.skipped:
        sys.exit(3)


def _plain(report: PruneReport) -> dict[str, object]:
    return {
        "removed": report.removed,
        "orphans": [msgspec.to_builtins(orphan) for orphan in report.orphans],
        "skipped": list(report.skipped),
    }


def _show(report: PruneReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for line in report.skipped:
        click.echo(f"Skipped: {line}", err=True)
    if not report.orphans:
        click.echo("Nothing to remove.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("TARGET", "KIND", "NAME", "WHY", "SIZE"):
        table.add_column(column, overflow="fold")
    for orphan in report.orphans:
        size = f"{orphan.bytes / _MEGA:.1f} MB" if orphan.bytes else ""
        table.add_row(orphan.target, orphan.kind, escape(orphan.name), escape(orphan.why), size)
    Console().print(table)
    click.echo("Removed." if report.removed else "Remove them with --yes.")
