"""`mlflow-deploy rollout`: watch a rollout, and pause, resume, promote or abort it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_deploy.targets.base import RolloutRecord

_POLL_SECONDS = 0.5


@click.command()
@click.argument("name")
@click.argument("word", required=False, type=click.Choice(["pause", "resume", "promote", "abort"]))
@click.option("-t", "--target", default="local", show_default=True, help="Target of the deployment.")
@click.option("-w", "--watch", is_flag=True, help="Go on printing until the rollout has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout(name: str, word: str | None, target: str, watch: bool, as_json: bool) -> None:
    """Show the rollout of the deployment NAME, the one that goes on or else the last one.

    With WORD, steer the one that goes on: `promote` skips the rest of the current step, `abort` gives all
    requests back to the stable revision. The command that runs the rollout obeys within a second.
    """
    import msgspec

    from mlflow_deploy.lifecycle.release import steer
    from mlflow_deploy.targets import open_target

    place = open_target(target)
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
    state = found.outcome or "goes on"
    lines = [
        f"{found.strategy} of revision {found.candidate} beside {found.stable}, begun {found.started_at}"
    ]
    lines += [f"{event.at}  {event.share:3} %  {event.decision}: {event.reason}" for event in found.events]
    if found.outcome:
        lines.append(f"The rollout was {state}.")
    for line in lines[shown:]:
        click.echo(line)
    return len(lines)
