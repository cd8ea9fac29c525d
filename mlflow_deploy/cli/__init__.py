"""The command `mlflow-deploy`: one file per noun, loaded when its command is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from mlflow_deploy import __version__
from mlflow_deploy.errors import DeployError

COMMANDS: dict[str, str] = {
    "approve": "mlflow_deploy.cli.approve:approve",
    "audit": "mlflow_deploy.cli.audit:audit",
    "controller": "mlflow_deploy.cli.controller:controller",
    "convert": "mlflow_deploy.cli.convert:convert",
    "demo": "mlflow_deploy.cli.demo:demo",
    "down": "mlflow_deploy.cli.machine:down",
    "formats": "mlflow_deploy.cli.formats:formats",
    "gates": "mlflow_deploy.cli.gates:gates",
    "history": "mlflow_deploy.cli.history:history",
    "image": "mlflow_deploy.cli.image:image",
    "keys": "mlflow_deploy.cli.seal:keys",
    "labels": "mlflow_deploy.cli.labels:labels",
    "lifecycle": "mlflow_deploy.cli.lifecycle:lifecycle",
    "logs": "mlflow_deploy.cli.logs:logs",
    "monitor": "mlflow_deploy.cli.monitor:monitor",
    "optimise": "mlflow_deploy.cli.optimise:optimise",
    "plan": "mlflow_deploy.cli.plan:plan",
    "promote": "mlflow_deploy.cli.promote:promote",
    "prune": "mlflow_deploy.cli.prune:prune",
    "reject": "mlflow_deploy.cli.approve:reject",
    "quarantine": "mlflow_deploy.cli.quarantine:quarantine",
    "release": "mlflow_deploy.cli.release:release",
    "rollback": "mlflow_deploy.cli.traffic:rollback",
    "rollout": "mlflow_deploy.cli.rollout:rollout",
    "seal": "mlflow_deploy.cli.seal:seal",
    "security": "mlflow_deploy.cli.security:security",
    "settings": "mlflow_deploy.cli.settings:settings",
    "status": "mlflow_deploy.cli.status:status",
    "traffic": "mlflow_deploy.cli.traffic:traffic",
    "unseal": "mlflow_deploy.cli.seal:unseal",
    "up": "mlflow_deploy.cli.machine:up",
}
"""Command -> `module:object`."""


class _Commands(click.Group):
    """A click group that imports a command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from mlflow_deploy.errors import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            guess = nearest(args[0], COMMANDS)
            raise click.UsageError(f"No such command {args[0]!r}. {guess.capitalize()}".strip(), ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlflow-deploy")
def group() -> None:
    """Takes models from MLflow's registry into production and keeps them honest there.

    Deployments are made and changed with `mlflow deployments create|update|delete -t local`; these commands
    look after them.
    """


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit status."""
    try:
        group(standalone_mode=True)
    except DeployError as error:
        click.echo(f"Error: {error.text}", err=True)
        sys.exit(error.exit_status)
