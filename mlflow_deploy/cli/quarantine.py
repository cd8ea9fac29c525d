"""`mlflow-deploy quarantine`: take a model version out of every deployment and keep it out."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.argument("model")
@click.argument("version")
@click.option("--reason", default="", help="Why; it stands on the version's page in MLflow.")
@click.option(
    "--lift", "lifted", is_flag=True, help="Take the quarantine back; deployments stay as they are."
)
@click.option("-t", "--target", help="Target to look at; all that were used from this machine when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quarantine(
    model: str, version: str, reason: str, lifted: bool, target: str | None, as_json: bool
) -> None:
    """Put VERSION of the registered model MODEL into quarantine.

    Every deployment of it goes back to its last good revision, and deploying it is refused until --lift. Exit
    status 3 when it still serves somewhere, a target did not answer, or the registry could not be told.
    """
    import msgspec

    from mlflow_deploy.errors import ConfigError
    from mlflow_deploy.lifecycle.quarantine import lift
    from mlflow_deploy.lifecycle.quarantine import quarantine as put
    from mlflow_deploy.progress import live_progress
    from mlflow_deploy.targets.finder import used_targets

    if lifted:
        if reason:
            raise ConfigError("--lift takes no reason", hint="Leave --reason out")
        names = lift(used_targets(target), model, version)
        click.echo(
            json.dumps({"model": model, "version": version, "deployments": names})
            if as_json
            else f"Version {version} of {model} may be deployed again; deployments stay as they are."
        )
        return
    with live_progress() as progress:
        report = put(used_targets(target), model, version, reason, progress=progress)
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(report), "ok": report.ok}, indent=2))
    else:
        click.echo(f"Version {version} of {model} is in quarantine: {reason}")
        for each in report.affected:
            click.echo(f"  {each.deployment} on {each.target}: {each.outcome}, {each.what}")
        if not report.affected:
            click.echo("  No deployment has a revision of it.")
        for line in report.silent:
            click.echo(f"  Target {line}", err=True)
        if report.registry:
            click.echo("  The registry was not told, so others may deploy it; say it again.", err=True)
            click.echo(f"  {report.registry}", err=True)
    if not report.ok:
        sys.exit(3)
