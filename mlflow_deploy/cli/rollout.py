"""`mlflow-deploy rollout`: watch a rollout, and pause, resume, promote or abort it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mlflow_deploy.cli.options import target_option

if TYPE_CHECKING:
    from mlflow_deploy.targets.base_records import DifferentRow, RolloutRecord, ShadowReport

_POLL_SECONDS = 0.5


@click.command()
@click.argument("name")
@click.argument("word", required=False, type=click.Choice(["pause", "resume", "promote", "abort"]))
@target_option
@click.option("-w", "--watch", is_flag=True, help="Go on printing until the rollout has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout(name: str, word: str | None, target: str | None, watch: bool, as_json: bool) -> None:
    """Show the rollout of the deployment NAME, the one that goes on or else the last one.

    With WORD, steer the one that goes on: `promote` skips the rest of the current step, `abort` gives all
    requests back to the stable revision. The command that runs the rollout obeys within a second.
    """
    import msgspec

    from mlflow_deploy.lifecycle.release import steer
    from mlflow_deploy.targets.finder import find_target

    place = find_target(name, target)
    if word:
        steer(place, name, word)
    shown = 0
    while True:
        record = place.require(name)
        found = record.rollout or record.last_rollout
        if as_json and not (watch and record.rollout):
            click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        elif found is None:
            click.echo(f"Deployment {name} has had no rollout in steps.")
        elif not as_json:
            shown = _show(found, shown)
        if not watch or record.rollout is None:
            return
        time.sleep(_POLL_SECONDS)


def _show(found: RolloutRecord, shown: int) -> int:
    """Print what is new since `shown` lines and return how many there are."""
    lines = [
        f"{found.strategy} of revision {found.candidate} beside {found.stable}, begun {found.started_at}"
    ]
    for event in found.events:
        share = f"{event.copies:3} % copied" if event.copies else f"{event.share:3} %"
        lines.append(f"{event.at}  {share}  {event.decision}: {event.reason}")
    if found.outcome:
        lines += _shadow(found.shadow) if found.shadow else []
        lines.append(f"The rollout was {found.outcome}.")
    for line in lines[shown:]:
        click.echo(line)
    return len(lines)


def _shadow(report: ShadowReport) -> list[str]:
    """How the answers of a shadow compared, with the rows that lie furthest apart."""
    lines = [
        f"{report.different:,} of {report.rows:,} rows in {report.requests:,} requests were answered "
        f"differently, a mean of {report.disagreement:.2%} of a request's rows",
        f"latency: p50 {_ms(report.candidate_p50_ms)}, p95 {_ms(report.candidate_p95_ms)}; "
        f"stable revision {_ms(report.stable_p50_ms)}, {_ms(report.stable_p95_ms)}",
    ]
    unseen = {
        "recorded on one side only": report.unmatched,
        "overwritten before they were read": report.lost,
        "too large to record": report.oversized,
        "not readable": report.unreadable,
        "refused by a busy candidate": report.busy,
    }
    if missing := ", ".join(f"{count:,} {what}" for what, count in unseen.items() if count):
        lines.append(f"not compared: {missing}")
    if report.worst:
        lines += _table(report.worst)
    return lines


def _table(rows: Sequence[DifferentRow]) -> list[str]:
    """The rows under each other, in columns of the same width."""
    cells = [("REQUEST", "ROW", "INPUT", "STABLE", "CANDIDATE")]
    cells += [(row.request_id, str(row.row), row.inputs, row.stable, row.candidate) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _ms(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.1f} ms"
