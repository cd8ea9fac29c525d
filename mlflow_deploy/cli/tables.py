"""Deployments as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLORS = {
    "ready": "green",
    "unavailable": "yellow",
    "starting": "yellow",
    "failed": "red",
    "stopped": "red",
    "done": "green",
    "started": "yellow",
    "rolled_back": "red",
}
_NONE = "No deployments. Make one with: mlflow deployments create -t local --name NAME -m MODEL_URI"


def show_deployments(
    deployments: Sequence[dict[str, Any]], *, as_json: bool, revisions: bool = False
) -> None:
    """Print deployments as `lifecycle.release.describe` gives them, with `revisions` each revision too."""
    if as_json:
        click.echo(json.dumps(list(deployments), indent=2))
        return
    from rich.console import Console

    Console().print(deployments_view(deployments, revisions=revisions))


def deployments_view(deployments: Sequence[dict[str, Any]], *, revisions: bool = False) -> RenderableType:
    """What `show_deployments` prints, for a live view too."""
    from rich.console import Group
    from rich.markup import escape

    if not deployments:
        return _NONE
    parts: list[RenderableType] = [_table(deployments)]
    if revisions:
        parts += [part for row in deployments for part in ("", _revisions(row))]
    for row in deployments:
        rollout = row["rollout"]
        if rollout and not rollout["outcome"]:
            parts.append(escape(f"{row['name']}: {_rollout(rollout, row['traffic'])}"))
        if row["detail"]:
            parts.append(escape(f"{row['name']}: {row['detail']}"))
        if words := _monitors(row["monitors"], revisions=revisions):
            parts.append(escape(f"{row['name']}: {words}"))
    return Group(*parts)


def _monitors(monitors: dict[str, Any], *, revisions: bool) -> str:
    """How the monitors are, in words; of healthy ones only where a single deployment is shown."""
    if monitors["job"] in ("running", "off") and not revisions:
        return ""
    if monitors["job"] == "off":
        return "no monitors"
    kinds = " and ".join(monitors["kinds"])
    return f"monitors of {kinds}, windows of {monitors['window']}: {monitors['job']}"


def _table(deployments: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAME", "TARGET", "STATUS", "UPDATE", "REV", "MODEL", "FORMAT", "URL"):
        table.add_column(column, overflow="fold")
    for row in deployments:
        table.add_row(
            row["name"],
            row["target"],
            _colored(row["status"]),
            _colored(row["last_update"]),
            str(row["revision"]),
            escape(row["resolved_uri"]),
            row["format"],
            row["url"],
        )
    return table


def _revisions(deployment: dict[str, Any]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    named = any(row["name"] != str(row["revision"]) for row in deployment["revisions"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("REV", *(["NAME"] if named else []), "TRAFFIC", "STATUS", "MODEL", "FORMAT", "SINCE"):
        table.add_column(column, overflow="fold")
    for row in deployment["revisions"]:
        color = _COLORS[row["status"]] if row["traffic"] else "dim"
        table.add_row(
            str(row["revision"]),
            *([row["name"]] if named else []),
            f"{row['traffic']} %",
            f"[{color}]{row['status']}[/{color}]",
            escape(row["model_uri"]),
            row["format"],
            row["created_at"],
        )
    return table


def _rollout(rollout: dict[str, Any], traffic: dict[str, int]) -> str:
    """One line on a rollout that goes on."""
    share = traffic.get(str(rollout["candidate"]), 0)
    line = f"{rollout['strategy']} of revision {rollout['candidate']} at {share} %"
    last = rollout["events"][-1] if rollout["events"] else None
    return f"{line}; last step {last['decision']}: {last['reason']}" if last else line


def _colored(word: str) -> str:
    return f"[{_COLORS[word]}]{word}[/{_COLORS[word]}]" if word else ""
