"""`mlflow-deploy demo`: from a logged model to a watched prediction, on real flights."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mlflow_deploy.demo.full import FullResult
    from mlflow_deploy.demo.replay import Period
    from mlflow_deploy.demo.story import DemoResult

_MOST = 5


@click.command()
@click.option("--full", is_flag=True, help="Then also train again and promote the new version by a canary.")
@click.option("--stop", "stop_it", is_flag=True, help="Stop the demo's processes and remove what it made.")
@click.option("--keep/--no-keep", default=True, help="Leave everything running at the end (default).")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also save the output as an SVG file."
)
@click.option(
    "--months",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw what the monitors found, and what followed, as an SVG file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def demo(
    full: bool, stop_it: bool, keep: bool, picture: Path | None, months: Path | None, as_json: bool
) -> None:
    """Train, register, promote, deploy and watch a model that predicts late flights.

    Needs no Docker and no cloud."""
    from rich.console import Console

    from mlflow_deploy.demo import picture as drawing
    from mlflow_deploy.demo import story

    console = Console(stderr=as_json, record=picture is not None, width=100 if picture else None)
    if stop_it:
        story.stop()
        console.print("The demo is stopped and removed.")
        return
    begun = time.monotonic()
    view, printed = _Steps(console), sys.stdout
    # MLflow prints the addresses of runs.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            result = story.run(view.step, view.progress, with_promotion=full)
            _show(console, result, time.monotonic() - begun, keep=keep)
            if picture:
                _save(console, picture)
            if months:
                months.write_text(drawing.months(result.to_dict()), encoding="utf-8")
            if as_json:
                click.echo(json.dumps(result.to_dict(), indent=2), file=printed)
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
    deployment, latency = result.deployment, result.latency
    facts = [
        ("Model", f"{deployment['model_name']} version {result.version}, served as {deployment['format']}"),
        ("Parity", deployment["parity"]),
        ("Fallback", deployment["fallback"]),
        ("Validation", f"ROC AUC {result.metrics['roc_auc']:.3f} on the last two weeks of February"),
        (
            "Latency",
            f"p50 {latency.p50_ms:.2f} ms, p95 {latency.p95_ms:.2f} ms, p99 {latency.p99_ms:.2f} ms "
            f"({latency.requests:,} requests)",
        ),
    ]
    console.print()
    for name, fact in facts:
        if fact:
            console.print(f"{name:<11} {fact}", soft_wrap=True, highlight=False)
    console.print()
    _show_monitors(console, result)
    console.print()
    if result.full is not None:
        _show_promotion(console, result.full)
        console.print()
    if keep:
        console.print(f"Ready in {seconds:.0f} s. Still running:")
        console.print(
            f"  MLflow      {result.tracking_uri}/#/models/{deployment['model_name']}", soft_wrap=True
        )
        console.print(f"  Deployment  {deployment['url']}")
        console.print(f"  Monitors    mlflow-deploy monitor list {deployment['name']}")
        console.print("  Stop it     mlflow-deploy demo --stop")


def _show_monitors(console: Console, result: DemoResult) -> None:
    """What the monitors found, against what, and what they told."""
    from rich.markup import escape

    last = result.periods[-1]
    console.print(_periods_table(result))
    console.print(_notes(result), style="dim", highlight=False)
    console.print()
    if last.moved:
        console.print(_moved_table(last))
        console.print()
    for alert in result.alerts:
        console.print(
            f"[bold red]Alert delivered:[/bold red] {escape(alert.partition(chr(10))[0])}", highlight=False
        )
    home = str(Path.home())
    console.print(
        f"The whole messages: {str(result.inbox).replace(home, '~', 1)}", soft_wrap=True, highlight=False
    )


def _show_promotion(console: Console, full: FullResult) -> None:
    """What the gates and the canary said of the new version."""
    from rich.markup import escape

    table = _table(f"What version {full.version}, trained on April to July, had to pass")
    for column in ("STEP", "OUTCOME"):
        table.add_column(column, no_wrap=True)
    table.add_column("WHY")
    for name, outcome, summary in full.gates:
        table.add_row(f"gate {name}", outcome, escape(summary))
    for share, decision, reason in full.steps:
        table.add_row(f"canary {share} %", decision, escape(reason))
    console.print(table)
    console.print(
        f"Version {full.version} serves as revision {full.revision}. {full.answered:,} requests were answered "
        f"meanwhile, {len(full.failed)} failed.",
        highlight=False,
    )
    console.print(
        "A canary step of 500 requests goes on unless something speaks against it; 'undecided' is no proof.\n"
        "Latency was not compared, since this machine did other work meanwhile.",
        style="dim",
        highlight=False,
    )
    for reason in full.failed[:_MOST]:
        console.print(f"[red]{escape(reason)}[/red]")


def _notes(result: DemoResult) -> str:
    """What the numbers were compared with, and what they do not say."""
    from mlflow_deploy.demo.replay import THRESHOLDS

    always = ", ".join(f"{period.majority:.3f}" for period in result.periods)
    distance = THRESHOLDS["monitor.drift.min_distance"]
    return f"""\
Each period is a window. Compared with {result.reference_rows:,} flights of February's last two
weeks, drawn at random; the others are 'late February'. The model was trained
on none of them. A distance of columns counts from {distance:g} on, since the weather
moves a little every month. A drift alert says that the flights changed; the
labels tell whether the answers got worse. The estimate has no labels and takes
it that equal flights are late as often as before.
Always 'on time' would have been right in {always}."""


def _periods_table(result: DemoResult) -> Table:
    table = _table("What the monitors of the deployment found")
    table.add_column("FLIGHTS OF", no_wrap=True)
    table.add_column("DRIFT", no_wrap=True)
    table.add_column("COLUMNS", no_wrap=True)
    for name in ("ACCURACY BEFORE", "ESTIMATED", "MEASURED"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("QUALITY", no_wrap=True)
    for period in result.periods:
        table.add_row(
            period.name,
            _colored(period.drift),
            f"{period.drifted} of {period.columns}",
            f"{period.expected:.3f}",
            f"{period.estimated:.3f}",
            f"{period.measured:.3f}",
            _colored(period.performance),
        )
    return table


def _moved_table(period: Period) -> Table:
    table = _table(f"Columns that moved most in {period.name}")
    table.add_column("COLUMN", no_wrap=True)
    table.add_column("JS", justify="right", no_wrap=True)
    table.add_column("WHAT HAPPENED")
    told = dict(reason.split(": ", 1) for reason in period.reasons)
    for name, distance in list(period.moved.items())[:_MOST]:
        # The first change says enough here; the others are in --json.
        table.add_row(name, f"{distance:.3f}", told.get(name, "").partition(";")[0])
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _colored(state: str) -> str:
    color = {"ok": "green", "warning": "yellow", "alert": "red"}.get(state, "dim")
    return f"[{color}]{state}[/{color}]"
