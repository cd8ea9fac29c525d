"""`mlflow-deploy demo`: from a logged model to a watched prediction, on real flights."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mlflow_deploy.demo.story import DemoResult


@click.command()
@click.option("--stop", "stop_it", is_flag=True, help="Stop the demo's processes and remove what it made.")
@click.option("--keep/--no-keep", default=True, help="Leave everything running at the end (default).")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def demo(stop_it: bool, keep: bool, as_json: bool) -> None:
    """Train, register, promote, deploy and watch a model that predicts late flights.

    Needs no Docker and no cloud."""
    from rich.console import Console

    from mlflow_deploy.demo import story

    console = Console(stderr=as_json)
    if stop_it:
        story.stop()
        console.print("The demo is stopped and removed.")
        return
    begun = time.monotonic()
    view = _Steps(console)
    try:
        result = story.run(view.step, view.progress)
        _show(console, result, time.monotonic() - begun, keep=keep)
        if as_json:
            click.echo(json.dumps(result.to_dict(), indent=2))
    finally:
        if not keep:
            with view.step("Clean up"):
                story.stop()


class _Steps:
    """A line per step with its time; while it runs, a spinner with what is being done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""
        self._status = console.status("")

    def progress(self, line: str) -> None:
        self._status.update(f"{self._title} [dim]{line}[/dim]")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        begun = time.monotonic()
        self._title = title
        self._status.update(title)
        try:
            with self._status:
                yield
        except BaseException:
            self._console.print(f"[red]✗[/red] {title}")
            raise
        self._console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - begun:.1f} s[/dim]")


def _show(console: Console, result: DemoResult, seconds: float, *, keep: bool) -> None:
    from rich.table import Table

    deployment, sent = result.deployment, result.traffic
    form = deployment["format"] + (f" ({deployment['parity']})" if deployment["parity"] else "")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Model", f"{deployment['model_name']} version {result.version}, served as {form}")
    if deployment["fallback"]:
        facts.add_row("", f"[yellow]not faster because {deployment['fallback']}[/yellow]")
    facts.add_row(
        "Validation",
        f"ROC AUC {result.metrics['roc_auc']:.3f}, accuracy {result.metrics['accuracy']:.3f} (end of February)",
    )
    facts.add_row(
        "Latency",
        f"p50 {sent.p50_ms:.2f} ms   p95 {sent.p95_ms:.2f} ms   p99 {sent.p99_ms:.2f} ms   "
        f"({sent.single_requests:,} requests, one flight each)",
    )
    facts.add_row(
        "Accuracy",
        f"{sent.accuracy:.3f} on {sent.rows:,} flights of March (always 'on time': {sent.majority:.3f}); "
        f"recall {sent.recall:.3f}, precision {sent.precision:.3f}",
    )
    console.print()
    console.print(facts)
    console.print()
    console.print(_drift_table(result))
    console.print()
    if keep:
        console.print(f"Ready in {seconds:.0f} s. Still running:")
        console.print(
            f"  MLflow      {result.tracking_uri}/#/models/{deployment['model_name']}", soft_wrap=True
        )
        console.print(f"  Deployment  {deployment['url']}")
        console.print("  Stop it     mlflow-deploy demo --stop")


def _drift_table(result: DemoResult) -> object:
    from rich.table import Table

    table = Table(
        title="Drift: July against the end of February",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("COLUMN")
    table.add_column("JS DISTANCE", justify="right")
    table.add_column("P-VALUE", justify="right")
    table.add_column("VERDICT")
    columns = sorted(result.drift.columns.items(), key=lambda item: -(item[1].statistic or 0.0))
    for name, column in columns:
        verdict = "[red]drift[/red]" if column.drifted else "[green]same[/green]"
        statistic = "" if column.statistic is None else f"{column.statistic:.3f}"
        p_value = "" if column.p_value is None else f"{column.p_value:.2g}"
        table.add_row(name, statistic, p_value, f"{verdict}  {column.reason}")
    return table
