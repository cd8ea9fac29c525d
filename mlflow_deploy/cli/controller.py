"""`mlflow-deploy controller`: follow the registry and make deployments match it."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import click


@click.command()
@click.option("--model", "models", multiple=True, help="Follow this registered model too; repeatable.")
@click.option("--all", "every", is_flag=True, help="Follow all registered models.")
@click.option("--policy", type=click.Path(path_type=Path), help="Policy file; default: lifecycle.yaml.")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=5.0, show_default=True, metavar="SECONDS",
    help="How often the registry is looked at.",
)  # fmt: skip
@click.option(
    "--once", is_flag=True, help="Look once and end; exit status 1 when something could not be done."
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def controller(
    models: tuple[str, ...], every: bool, policy: Path | None, interval: float, once: bool, as_json: bool
) -> None:
    """Follow the registry: who moves a version to a stage or sets its alias, deploys it.

    Followed are the models that the policy file names, those with a tag deploy.policy, and those of --model.
    A version that gets into a stage goes through `mlflow-deploy promote`: gates, rollout, outcome on its page.
    It runs until SIGTERM or Ctrl-C, and can be killed at any moment: the next one goes on.
    """
    from mlflow_deploy.lifecycle.controller.loop import follow
    from mlflow_deploy.lifecycle.controller.reconcile import Event
    from mlflow_deploy.progress import live_progress

    def tell(event: Event) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        if as_json:
            click.echo(json.dumps({"at": at, **dataclasses.asdict(event)}))
        else:
            what = f"{event.model} {event.version}".strip()
            place = f" for {event.stage}" if event.stage else ""
            why = f": {event.reason}" if event.reason else ""
            click.echo(f"{at} {event.action} {what}{place}{why}".replace("  ", " "))
        sys.stdout.flush()

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with live_progress() as progress:
            well = follow(
                policy=policy, models=models, every=every, interval=interval, once=once, stop=stop,
                tell=tell, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        return
    if once and not well:
        sys.exit(1)
