"""`mlflow-deploy approve` and `reject`: a person's word on a version, as tags of the version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def _options(command: Any) -> Any:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--policy", type=click.Path(path_type=Path), help="Policy file; default: lifecycle.yaml."
        ),
        click.option("--comment", default="", help="Why; reports show it."),
        click.option("--stage", required=True, help="Stage that the version shall, or shall not, get into."),
        click.argument("version"),
        click.argument("model"),
    ):
        command = option(command)
    return command


@click.command()
@_options
def approve(model: str, version: str, stage: str, comment: str, policy: Path | None, as_json: bool) -> None:
    """Approve VERSION of MODEL for a stage, in your name: MLFLOW_TRACKING_USERNAME or the system's user.

    It is the tag deploy.approval.STAGE of the version, which can be set by hand and by other tools too. Who may
    write tags of the version can write it in any name; MLflow's access control decides on that.
    """
    _say(model, version, _stage(model, stage, policy), comment, approve=True, as_json=as_json)


@click.command()
@_options
def reject(model: str, version: str, stage: str, comment: str, policy: Path | None, as_json: bool) -> None:
    """Reject VERSION of MODEL for a stage, in your name; it stays out until you approve it after all."""
    _say(model, version, _stage(model, stage, policy), comment, approve=False, as_json=as_json)


def _stage(model: str, stage: str, policy: Path | None) -> str:
    """The stage as the policy writes it."""
    from mlflow_deploy.lifecycle.policy_source import policy_of

    return policy_of(model, policy).stage(stage).name


def _say(model: str, version: str, stage: str, comment: str, *, approve: bool, as_json: bool) -> None:
    from mlflow_deploy.lifecycle.approvals import say
    from mlflow_deploy.rollout.journal import who

    words = say(model, version, stage, who(), approve=approve, comment=comment)
    if as_json:
        document: dict[str, Any] = {"model": model, "version": version, "stage": stage}
        document |= {"approved": dict(words.approved), "rejected": dict(words.rejected)}
        click.echo(json.dumps(document, indent=2))
        return
    done = "approved" if approve else "rejected"
    click.echo(f"Version {version} of {model} is {done} for {stage} by {who()}.")
    for people, told in ((words.approved, "Approved"), (words.rejected, "Rejected")):
        if people:
            said = [f"{person} ({text})" if text else person for person, text in sorted(people.items())]
            click.echo(f"{told} by: {', '.join(said)}")
