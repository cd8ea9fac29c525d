"""`mlflow-deploy up` and `down`: bring all deployments of this machine back, or stop them."""

from __future__ import annotations

import sys
import time

import click

from mlflow_deploy.cli.tables import show_deployments

_POLL_SECONDS = 0.1


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait until all are ready.")
def up(as_json: bool, wait: float) -> None:
    """Bring every deployment of this machine back under its address, after a restart or a crash.

    Also removes what killed commands left half made. Exit status 3 when a deployment does not become ready.
    To have it run at every start of the machine, put `@reboot mlflow-deploy up` into your crontab.
    """
    from mlflow_deploy.lifecycle.release import describe, reconcile
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.local import LocalTarget

    target = LocalTarget()
    with live_progress() as progress:
        reconcile(target, progress)
        deadline = time.monotonic() + wait
        while True:
            rows = [describe(target, record) for record in target.records()]
            waiting = [row["name"] for row in rows if row["status"] != "ready"]
            if not waiting or time.monotonic() > deadline:
                break
            progress(f"Waiting for {', '.join(waiting)}")
            time.sleep(_POLL_SECONDS)
    show_deployments(rows, as_json=as_json)
    if waiting:
        sys.exit(3)


@click.command()
def down() -> None:
    """Drain and stop all processes of this machine; `mlflow-deploy up` brings them back."""
    from mlflow_deploy.targets.local import LocalTarget

    LocalTarget().supervisor.shut_down()
