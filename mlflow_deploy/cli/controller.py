"""`mlflow-deploy controller`: follow the registry and make deployments match it."""

from __future__ import annotations

import contextlib
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
@click.option(
    "--webhook-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Take webhooks of the registry at /webhooks and tell Prometheus at /metrics; 0 for a free port.",
)
@click.option(
    "--webhook-host", default="127.0.0.1", show_default=True, metavar="HOST", help="Where --webhook-port is."
)
@click.option(
    "--lease", default="default", show_default=True, metavar="NAME",
    help="Of all controllers with this name, on whatever machines, only one acts.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def controller(
    models: tuple[str, ...], every: bool, policy: Path | None, interval: float, once: bool,
    webhook_port: int | None, webhook_host: str, lease: str, as_json: bool,
) -> None:  # fmt: skip
    """Follow the registry: who moves a version to a stage or sets its alias, deploys it.

    Followed are the models that the policy file names, those with a tag deploy.policy, and those of --model.
    A version that gets into a stage goes through `mlflow-deploy promote`: gates, rollout, outcome on its page.
    It runs until SIGTERM or Ctrl-C, and can be killed at any moment: the next one goes on. The secret of the
    webhooks is MLFLOW_DEPLOY_WEBHOOK_SECRET, or in the file that MLFLOW_DEPLOY_WEBHOOK_SECRET_FILE names.
    """
    from mlflow_deploy.lifecycle.controller.listener import SECRET_VARIABLE, Listener, webhook_secret
    from mlflow_deploy.lifecycle.controller.loop import follow
    from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
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

    stop, metrics = threading.Event(), ControllerMetrics()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with contextlib.ExitStack() as stack:
            if webhook_port is not None:
                secret = webhook_secret()
                listener = Listener(webhook_host, webhook_port, secret=secret, metrics=metrics)
                stack.callback(listener.close)
                what = "and webhooks" if secret else f"only: {SECRET_VARIABLE} is not set"
                tell(Event("", "", "listening", reason=f"metrics {what}, on {webhook_host}:{listener.port}"))
            progress = stack.enter_context(live_progress())
            well = follow(
                policy=policy, models=models, every=every, interval=interval, once=once, stop=stop,
                tell=tell, progress=progress, metrics=metrics, lease=lease,
            )  # fmt: skip
    except KeyboardInterrupt:
        return
    if once and not well:
        sys.exit(1)
