"""`mlflow-deploy demo`: from a logged model to a watched prediction, on real flights."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mlflow_deploy.demo.story import DemoResult


@click.command()
@click.option("--stop", "stop_it", is_flag=True, help="Stop the demo's processes and remove what it made.")
@click.option("--keep/--no-keep", default=True, help="Leave everything running at the end (default).")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also save the output as an SVG file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def demo(stop_it: bool, keep: bool, picture: Path | None, as_json: bool) -> None:
    """Train, register, promote, deploy and watch a model that predicts late flights.

    Needs no Docker and no cloud."""
    from rich.console import Console

    from mlflow_deploy.demo import story

    console = Console(stderr=as_json, record=picture is not None, width=100 if picture else None)
    if stop_it:
        story.stop()
        console.print("The demo is stopped and removed.")
        return
    begun = time.monotonic()
    view = _Steps(console)
    try:
        result = story.run(view.step, view.progress)
        _show(console, result, time.monotonic() - begun, keep=keep)
        if picture:
            _save(console, picture)
        if as_json:
            click.echo(json.dumps(result.to_dict(), indent=2))
    finally:
        if not keep:
            with view.step("Clean up"):
                story.stop()


def _save(console: Console, picture: Path) -> None:
    """Save what was printed as an SVG file that loads nothing from elsewhere."""
    svg = console.export_svg(title="make demo", clear=False)
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


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
    deployment, sent = result.deployment, result.traffic
    facts = [
        ("Model", f"{deployment['model_name']} version {result.version}, served as {deployment['format']}"),
        ("Parity", deployment["parity"]),
        ("Fallback", deployment["fallback"]),
        ("Validation", f"ROC AUC {result.metrics['roc_auc']:.3f} on the last two weeks of February"),
        (
            "Latency",
            f"p50 {sent.p50_ms:.2f} ms, p95 {sent.p95_ms:.2f} ms, p99 {sent.p99_ms:.2f} ms "
            f"({sent.single_requests:,} requests)",
        ),
        (
            "Accuracy",
            f"{sent.accuracy:.3f} on {sent.rows:,} flights of March (always 'on time': {sent.majority:.3f})",
        ),
    ]
    console.print()
    for name, fact in facts:
        if fact:
            console.print(f"{name:<11} {fact}", soft_wrap=True, highlight=False)
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

    columns = sorted(result.drift.columns.items(), key=lambda item: -(item[1].statistic or 0.0))
    drifted = sum(column.drifted for _, column in columns)
    table = Table(
        title=f"Drift of July against February: {drifted} of {len(columns)} columns",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("COLUMN", no_wrap=True)
    table.add_column("JS", justify="right", no_wrap=True)
    table.add_column("P-VALUE", justify="right", no_wrap=True)
    table.add_column("VERDICT")
    for name, column in columns:
        statistic = "" if column.statistic is None else f"{column.statistic:.3f}"
        p_value = "" if column.p_value is None else f"{column.p_value:.1g}"
        # The first change says enough here; the others are in --json.
        reason = column.reason.partition(";")[0].removeprefix("the distribution ")
        verdict = f"[red]{reason}[/red]" if column.drifted else f"[green]{reason}[/green]"
        table.add_row(name, statistic, p_value, verdict)
    return table
