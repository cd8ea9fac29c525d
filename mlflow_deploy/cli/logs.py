"""`mlflow-deploy logs`: what a deployment's processes wrote."""

from __future__ import annotations

from collections import deque

import click

from mlflow_deploy.cli.options import target_option


@click.command()
@click.argument("name")
@target_option
@click.option("-r", "--revision", type=int, help="Revision; the one that serves when left out.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing as lines are written.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Print only the last N lines.")
def logs(name: str, target: str | None, revision: int | None, follow: bool, lines: int | None) -> None:
    """Print the log of the deployment NAME."""
    from mlflow_deploy.errors import ConfigError
    from mlflow_deploy.targets.finder import find_target

    place = find_target(name, target)
    record = place.require(name)
    number = record.stable.number if revision is None else revision
    known = [str(each.number) for each in record.revisions]
    if str(number) not in known:
        raise ConfigError(
            f"Deployment {name!r} has no revision {number}", hint=f"Revisions: {', '.join(known)}"
        )
    skipped = 0
    if lines is not None:
        last: deque[str] = deque(maxlen=lines)
        for line in place.logs(name, number, follow=False):
            last.append(line)
            skipped += 1
        click.echo("".join(f"{line}\n" for line in last), nl=False)
        if not follow:
            return
    for position, line in enumerate(place.logs(name, number, follow=follow)):
        if position >= skipped:
            click.echo(line)
