"""`mlflow-deploy lifecycle check`: can the policy be used, and what does it say?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.policy import ModelPolicy, Policy


@click.group()
def lifecycle() -> None:
    """Look at the policy of stages, gates and approvals (lifecycle.yaml)."""


@lifecycle.command()
@click.argument("path", required=False)
@click.option("--model", help="Show what holds for this registered model; its tag deploy.policy counts too.")
@click.option("--keys", is_flag=True, help="List every key of the file with its meaning, and check nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: str | None, model: str | None, keys: bool, as_json: bool) -> None:
    """Check the policy file PATH; exit status 2 when something in it cannot work.

    Without PATH it is the file that MLFLOW_DEPLOY_POLICY names, or lifecycle.yaml in the working folder, or,
    without any, the built-in policy.
    """
    from mlflow_deploy.lifecycle.policy import Policy, described_keys
    from mlflow_deploy.lifecycle.policy_check import problems_of
    from mlflow_deploy.lifecycle.policy_source import policy_of

    if keys:
        rows = described_keys()
        width = max(len(key) for key, _ in rows)
        click.echo("\n".join(f"{key:<{width}}  {doc}" for key, doc in rows))
        return
    policy = Policy.load(path)
    if model:
        own = policy_of(model, path)
        policy = policy.model_copy(update={"models": {**policy.models, model: own}})
    problems = problems_of(policy)
    if as_json:
        names = [model] if model else list(policy.models)
        shown = {name: policy.for_model(name).model_dump(mode="json") for name in names}
        document = {"ok": not problems, "problems": problems, "models": shown}
        document["default"] = policy.default.model_dump(mode="json")
        click.echo(json.dumps(document, indent=2))
    else:
        _show(policy, model)
        for problem in problems:
            click.echo(f"Error: {problem}", err=True)
    if problems:
        sys.exit(2)


def _show(policy: Policy, model: str | None) -> None:
    from rich.console import Console

    console = Console()
    for name in [model] if model else ["", *policy.models]:
        others = "all other models" if policy.models else "all models"
        console.print(f"[bold]{name or others}[/bold]")
        console.print(_table(policy.for_model(name or "model")))


def _table(policy: ModelPolicy) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("STAGE", "MLFLOW STAGE", "ALIAS", "GATES", "APPROVALS", "DEPLOYMENT", "STRATEGY"):
        table.add_column(column, overflow="fold")
    for stage in policy.stages:
        place = f"{stage.deployment} on {stage.target}" if stage.deployment else "none"
        table.add_row(
            stage.name,
            stage.classic_stage,
            stage.alias or "none",
            escape(", ".join(stage.gates) or "none"),
            str(stage.approvals.needed),
            escape(place),
            (stage.strategy or "as set") if stage.deployment else "",
        )
    return table
