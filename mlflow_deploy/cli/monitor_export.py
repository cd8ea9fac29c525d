"""`mlflow-deploy monitor rules|alertmanager|prometheus|dashboards|targets|metrics`: what Prometheus needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlflow_deploy.errors import DeployError, StateWriteFailed
from mlflow_deploy.files import write_atomic
from mlflow_deploy.monitoring.rules import RuleSettings

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def _rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of `RuleSettings`."""
    for field in reversed(dataclasses.fields(RuleSettings)):
        flag = "--" + field.name.replace("_", "-")
        option = click.option(
            flag,
            field.name,
            type=float if isinstance(field.default, float) else str,
            default=field.default,
            show_default=True,
            help=f"{field.metadata['doc']}.",
        )
        command = option(command)
    return command


@click.command()
@_rule_options
@click.option("-o", "--output", type=_FILE, help="File to write; standard output when left out.")
def rules(output: Path | None, **settings: Any) -> None:
    """Print the alert rules for Prometheus."""
    from mlflow_deploy.monitoring.rules import rules as document

    _emit(_yaml(document(RuleSettings(**settings))), output)


@click.command()
@click.option(
    "--webhook", default="http://127.0.0.1:9095/alerts", show_default=True, help="URL that gets alerts."
)
@click.option("-o", "--output", type=_FILE, help="File to write; standard output when left out.")
def alertmanager(webhook: str, output: Path | None) -> None:
    """Print an Alertmanager configuration to start from: routes, inhibition, receivers."""
    from mlflow_deploy.monitoring.rules import alertmanager as document

    _emit(_yaml(document(webhook)), output)


@click.command()
@click.option(
    "--targets", default="/etc/prometheus/mlflow-deploy", show_default=True, help="Folder of `targets`."
)
@click.option(
    "--rules-file",
    default="/etc/prometheus/mlflow-deploy-rules.yml",
    show_default=True,
    help="File of `rules`.",
)
@click.option("--interval", default="15s", show_default=True, help="How often is scraped.")
@click.option("-o", "--output", type=_FILE, help="File to write; standard output when left out.")
def prometheus(targets: str, rules_file: str, interval: str, output: Path | None) -> None:
    """Print a Prometheus configuration that finds deployments by the files of `targets`."""
    from mlflow_deploy.monitoring.rules import scrape_config

    _emit(_yaml(scrape_config(targets, rules_file, interval=interval)), output)


@click.command()
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder to write into.")
@click.option(
    "--path",
    default="/var/lib/grafana/dashboards/mlflow-deploy",
    show_default=True,
    help="Where Grafana will find the dashboards.",
)
def dashboards(output: Path, path: str) -> None:
    """Write the Grafana dashboards, and the files that provision them."""
    from mlflow_deploy.monitoring import dashboards as made

    for name, dashboard in made.dashboards().items():
        _emit(json.dumps(dashboard, indent=1) + "\n", output / name)
    for name, document in made.provisioning(path).items():
        _emit(_yaml(document), output / "provisioning" / name)


@click.command()
@click.option("-t", "--target", help="Only deployments on this target.")
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder to write into.")
def targets(target: str | None, output: Path) -> None:
    """Write which servers and monitors run, for Prometheus' discovery by files; run it again after changes."""
    from mlflow_deploy.targets.base import Capability
    from mlflow_deploy.targets.finder import used_targets

    servers: list[dict[str, Any]] = []
    monitors: list[dict[str, Any]] = []
    for place in used_targets(target):
        for record in place.records():
            labels = {"deployment": record.name, "target": place.name}
            for number, addresses in place.scrape_addresses(record).items():
                servers.append({"targets": [*addresses], "labels": {**labels, "revision": str(number)}})
            if Capability.MONITORS not in place.capabilities or place.monitor_state(record) == "off":
                continue
            try:
                address = json.loads(place.ask_monitor(record, ["exporter"]))["address"]
            except DeployError as error:
                click.echo(f"{record.name}: {error.text}", err=True)
                continue
            if address:
                monitors.append({"targets": [address], "labels": labels})
    for name, found in (("servers.json", servers), ("monitors.json", monitors)):
        _emit(json.dumps(found, indent=1) + "\n", output / name)


@click.command()
def metrics() -> None:
    """Print the table of all metrics, in Markdown."""
    from mlflow_deploy.monitoring.definitions import markdown

    click.echo(markdown())


EXPORTS = (rules, alertmanager, prometheus, dashboards, targets, metrics)
"""Commands of `mlflow-deploy monitor`."""


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(document, sort_keys=False, width=110)


def _emit(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, text.encode(), mode=0o644)
    except OSError as error:
        raise StateWriteFailed(output, error.strerror or str(error)) from error
