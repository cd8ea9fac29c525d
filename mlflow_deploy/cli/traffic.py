"""`mlflow-deploy traffic` and `rollback`: who gets the requests of a deployment."""

from __future__ import annotations

import click

from mlflow_deploy.cli.options import target_option
from mlflow_deploy.cli.tables import show_deployments
from mlflow_deploy.errors import ConfigError


@click.command()
@click.argument("name")
@click.argument("shares", nargs=-1, required=True, metavar="REVISION=PERCENT...")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def traffic(name: str, shares: tuple[str, ...], target: str | None, as_json: bool) -> None:
    """Share the requests of the deployment NAME among its revisions, such as 1=90 2=10.

    Revisions that get a share are started when they do not run; those without one are stopped. Shares other
    than 100 need a deployment with gateway=envoy.
    """
    from mlflow_deploy.lifecycle.release import set_traffic
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.finder import find_target

    weights: dict[int, int] = {}
    for share in shares:
        revision, _, percent = share.partition("=")
        if not (revision.isdigit() and percent.isdigit()) or int(revision) in weights:
            raise ConfigError(
                f"{share!r} is no share",
                hint="Give each revision once, as REVISION=PERCENT, such as 1=90 2=10",
            )
        weights[int(revision)] = int(percent)
    with live_progress() as progress:
        row = set_traffic(find_target(name, target), name, weights, progress=progress)
    show_deployments([row], as_json=as_json, revisions=True)


@click.command()
@click.argument("name")
@click.option("--to", type=int, help="Revision to go back to; the one that served before when left out.")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollback(name: str, to: int | None, target: str | None, as_json: bool) -> None:
    """Give all requests of the deployment NAME back to an earlier revision.

    Works without the MLflow server, since the bundles of all revisions are kept.
    """
    from mlflow_deploy.lifecycle.release import rollback as roll_back
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.finder import find_target

    with live_progress() as progress:
        row = roll_back(find_target(name, target), name, to, progress=progress)
    show_deployments([row], as_json=as_json, revisions=True)
