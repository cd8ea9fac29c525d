"""`mlflow-deploy audit verify`: are the release records whole, and do bundles and MLflow agree with them?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.records.audit import Audit


@click.group()
def audit() -> None:
    """Look whether what was recorded is still what was written."""


@audit.command()
@click.argument("name", required=False)
@click.option("-t", "--target", help="Target to look at; all that were used from this machine when left out.")
@click.option("--mlflow/--no-mlflow", "mlflow", default=True, help="Compare the copies in MLflow too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(name: str | None, target: str | None, mlflow: bool, as_json: bool) -> None:
    """Verify the release records of NAME, or of every deployment there is or was; exit status 1 for a problem.

    Each record's hash is computed again, each must follow the one before it, the chain must be as long as its
    head says, bundles that are still there must give their digests, and MLflow's copies must say the same.
    """
    from mlflow_deploy.errors import ConfigError
    from mlflow_deploy.lifecycle.records.audit import audit as look
    from mlflow_deploy.lifecycle.records.audit import audited_names
    from mlflow_deploy.lifecycle.records.recorder import catch_up
    from mlflow_deploy.progress import mlflow_is_quiet
    from mlflow_deploy.targets.finder import used_targets

    found: list[Audit] = []
    silent = []
    with mlflow_is_quiet():
        for place in used_targets(target):
            names, why = audited_names(place)
            silent += [f"Target {place.name} does not answer: {why}"] if why else []
            for each in names:
                if name in (None, each):
                    busy = catch_up(place, each)
                    silent += [f"{each}: {busy}"] if busy else []
                    found.append(look(place, each, mlflow=mlflow))
    if name and not found and not silent:
        raise ConfigError(
            f"There are no release records of {name!r}", hint="`mlflow-deploy audit verify` shows all"
        )
    if as_json:
        click.echo(json.dumps({"audits": [_plain(each) for each in found], "notes": silent}, indent=2))
    else:
        _show(found, silent)
    if silent or not all(each.ok for each in found):
        sys.exit(1)


def _plain(found: Audit) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(found), "ok": found.ok}


def _show(found: list[Audit], silent: list[str]) -> None:
    for each in found:
        copies = "" if each.copies is None else f", {each.copies} copies in MLflow"
        verdict = "whole" if each.ok else f"{len(each.problems)} problems"
        looked = f"{each.records} records, {each.bundles} bundles{copies}"
        click.echo(f"{each.deployment} on {each.target}: {verdict} ({looked})")
        for problem in each.problems:
            about = f"record {problem.record}" if problem.record else "chain"
            click.echo(f"  {about} {problem.kind}: {problem.what}")
        for note in each.notes:
            click.echo(f"  note: {note}")
    for line in silent:
        click.echo(line, err=True)
    if not found and not silent:
        click.echo("There are no release records yet.")
