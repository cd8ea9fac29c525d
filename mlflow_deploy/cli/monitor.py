"""`mlflow-deploy monitor`: what the monitors of a deployment found, and having them look now."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from mlflow_deploy.cli.monitor_export import EXPORTS
from mlflow_deploy.cli.options import target_option

_COLORS = {"ok": "green", "warning": "yellow", "alert": "red", "error": "red"}
_KINDS = click.Choice(["drift", "performance"])
_Command = TypeVar("_Command", bound=Callable[..., None])


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _of_options(command: _Command) -> _Command:
    for option in (
        click.option("-k", "--kind", type=_KINDS, help="Only this monitor."),
        click.option("-r", "--revision", type=click.IntRange(min=1), help="Only this revision."),
    ):
        command = option(command)
    return command


@click.group()
def monitor() -> None:
    """Drift and quality of what a deployment answers; monitors are attached to every revision by themselves."""


for _export in EXPORTS:
    monitor.add_command(_export)


@monitor.command()
@click.argument("deployment")
@target_option
@_json_option
def status(deployment: str, target: str | None, as_json: bool) -> None:
    """Show how the monitors of DEPLOYMENT stand. Exit status 3 when the job does not run."""
    from mlflow_deploy.lifecycle.monitors import monitors

    found = monitors(*_find(deployment, target))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"Job: {found['job']}")
        _show(
            found["monitors"],
            {
                "REV": "revision",
                "MONITOR": "kind",
                "WINDOW": "window",
                "STATE": "state",
                "UNTIL": "last_end",
                "ROWS": "rows",
                "LABELS": "labels",
                "WINDOWS": "windows",
            },
        )
        for entry in found["monitors"]:
            if entry["summary"]:
                click.echo(f"Revision {entry['revision']}, {entry['kind']}: {entry['summary']}")
            for note in entry["notes"]:
                click.echo(f"Revision {entry['revision']}, {entry['kind']}: {note}")
    if found["job"] not in ("running", "off"):
        sys.exit(3)


@monitor.command(name="list")
@click.argument("deployment")
@target_option
@_of_options
@click.option("-n", "--lines", type=click.IntRange(min=1), default=20, show_default=True, help="Last N.")
@click.option("--all", "superseded", is_flag=True, help="Also results that later ones replaced.")
@_json_option
def list_(
    deployment: str,
    target: str | None,
    kind: str | None,
    revision: int | None,
    lines: int,
    superseded: bool,
    as_json: bool,
) -> None:
    """List the windows of DEPLOYMENT that were judged, the oldest first."""
    options = ["--last", str(lines), *_chosen(kind, revision), *(["--all"] if superseded else [])]
    _print_results(_ask(deployment, target, "results", *options), as_json=as_json)


@monitor.command()
@click.argument("deployment")
@target_option
@_json_option
def run(deployment: str, target: str | None, as_json: bool) -> None:
    """Judge the windows of DEPLOYMENT that are due now, log to MLflow what waits, do what has to follow."""
    from mlflow_deploy.lifecycle.monitor_hand import act_for

    answer = _landed(deployment, target, _ask(deployment, target, "run"))
    answer["actions"] = act_for(*_find(deployment, target))
    _print_round(answer, as_json=as_json)
    if not as_json:
        _print_actions(answer["actions"])


@monitor.command()
@click.argument("deployment")
@target_option
@click.option("--watch", "watching", is_flag=True, help="Go on until the deployment is gone.")
@_json_option
def act(deployment: str, target: str | None, watching: bool, as_json: bool) -> None:
    """Carry out the actions that the monitors of DEPLOYMENT want and may not carry out themselves.

    A monitor in a container has no right over its engine. A process of the machine that deployed does this by
    itself; another machine can do it with this command."""
    from mlflow_deploy.lifecycle.monitor_hand import act_for, watch

    place, record = _find(deployment, target)
    if watching:
        sys.exit(watch(place, record.name))
    done = act_for(place, record)
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        _print_actions(done)
        if not done:
            click.echo("Nothing is to be done.")


@monitor.command()
@click.argument("deployment")
@target_option
@_of_options
@click.option("-s", "--start", help="First moment, ISO 8601; UTC without time zone. Default: 30 days ago.")
@click.option("-e", "--end", help="Last moment; now when left out.")
@click.option("--redo", is_flag=True, help="Also judge windows again that have a result.")
@_json_option
def backfill(
    deployment: str,
    target: str | None,
    kind: str | None,
    revision: int | None,
    start: str | None,
    end: str | None,
    redo: bool,
    as_json: bool,
) -> None:
    """Judge the windows of DEPLOYMENT between two times that have no result."""
    now = datetime.now(UTC)
    begin = _moment(start, "--start") if start else now - timedelta(days=30)
    until = _moment(end, "--end") if end else now
    options = ["--start", begin.isoformat(), "--end", until.isoformat(), *_chosen(kind, revision)]
    answer = _ask(deployment, target, "backfill", *options, *(["--redo"] if redo else []))
    _print_round(_landed(deployment, target, answer), as_json=as_json)


@monitor.command()
@click.argument("deployment")
@target_option
@_of_options
@click.option("-s", "--start", default="", help="Start of the window; the latest with a page when left out.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File for the page.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@_json_option
def report(
    deployment: str,
    target: str | None,
    kind: str | None,
    revision: int | None,
    start: str,
    output: Path | None,
    show: bool,
    as_json: bool,
) -> None:
    """Write the page of a window of DEPLOYMENT: what moved, before and after, how sure that is."""
    kind = kind or "drift"
    options = [*_chosen(kind, revision), *(["--start", start] if start else [])]
    page = _ask(deployment, target, "report", *options)
    path = output or Path(f"{deployment}-{kind}-{page['name']}")
    try:
        path.write_text(page["html"], encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from error
    click.echo(json.dumps({"start": page["start"], "path": str(path)}) if as_json else f"Wrote {path}")
    if show:
        webbrowser.open(path.absolute().as_uri())


# --- details -----------------------------------------------------------------------------------------------


def _find(deployment: str, target: str | None) -> tuple[Any, Any]:
    from mlflow_deploy.targets.finder import find_target

    place = find_target(deployment, target)
    return place, place.require(deployment)


def _ask(deployment: str, target: str | None, *arguments: str) -> Any:
    place, record = _find(deployment, target)
    return json.loads(place.ask_monitor(record, arguments))


def _landed(deployment: str, target: str | None, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of a round, after results that the job could not log were logged from here."""
    from mlflow_deploy.lifecycle.monitors import land_from_here

    if answer["landed"]["left"]:
        answer["landed"] = land_from_here(*_find(deployment, target))
    return answer


def _chosen(kind: str | None, revision: int | None) -> list[str]:
    return [*(["--kind", kind] if kind else []), *(["--revision", str(revision)] if revision else [])]


def _moment(text: str, option: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time, such as 2026-01-31T12:00", param_hint=option
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _print_round(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    _print_results(answer["results"], as_json=False)
    landed = answer["landed"]
    if landed["problem"]:
        click.echo(f"{landed['left']} results wait for MLflow: {landed['problem']}", err=True)
    elif landed["logged"]:
        click.echo(f"{landed['logged']} results were logged to MLflow")


def _print_actions(done: Sequence[Mapping[str, Any]]) -> None:
    for each in done:
        told = each["detail"] if each["done"] else f"not now: {each['detail']}"
        click.echo(f"{each['action']} for revision {each['revision']}: {told}")


def _print_results(results: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    if not results:
        click.echo("No window was judged.")
        return
    _show(
        results,
        {
            "REV": "revision",
            "MONITOR": "kind",
            "FROM": "start",
            "TO": "end",
            "#": "number",
            "STATE": "state",
            "ROWS": "rows",
            "LABELS": "labels",
        },
    )
    for row in results:
        if row["state"] in ("warning", "alert", "error"):
            click.echo(f"{row['kind']} from {row['start'][:19]}: {row['summary']}")


def _show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        color = _COLORS.get(str(row["state"]))
        cells = {key: escape(_cell(row, key)) for key in columns.values()}
        if color:
            cells["state"] = f"[{color}]{cells['state']}[/{color}]"
        table.add_row(*cells.values())
    Console().print(table)


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key == "state":
        return str(row[key]).replace("_", " ")
    if key in ("start", "end", "last_end"):
        return str(row[key])[5:19].replace("T", " ")
    return str(row[key])
