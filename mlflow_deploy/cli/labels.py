"""`mlflow-deploy labels`: true answers that came later, given to the monitors of a deployment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mlflow_deploy.cli.options import target_option


@click.group()
def labels() -> None:
    """Give a deployment the true answers to what it predicted."""


@labels.command()
@click.argument("deployment")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", default="", metavar="COLUMN", help="Column of the request ids, or of capture.key.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column of the answers.")
@click.option("--row", default="", metavar="COLUMN", help="Column of the row's position in its request.")
@click.option("--time", default="", metavar="COLUMN", help="Column of when each label became known.")
@click.option(
    "--late-days", type=click.FloatRange(min=0), help="Labels that come after so many days are late."
)
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(
    deployment: str,
    file: Path,
    key: str,
    label: str,
    row: str,
    time: str,
    late_days: float | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Add the labels in FILE, a CSV or Parquet file, and tell which predictions they belong to.

    Nothing that was there is changed: a later label for the same prediction holds.
    """
    from mlflow_deploy.lifecycle.labels import add_labels
    from mlflow_deploy.targets.finder import find_target

    place = find_target(deployment, target)
    record = place.require(deployment)
    columns = {"key": key, "label": label, "row": row, "time": time}
    added, report = add_labels(place, record, file, columns, late_days)
    if as_json:
        click.echo(json.dumps({"deployment": record.name, "added": added, "report": report}, indent=2))
        return
    click.echo(f"Added {added} labels to {record.name}.")
    for line in _lines(report):
        click.echo(line)


def _lines(report: dict[str, Any]) -> list[str]:
    """The report for people: what is zero is left out."""
    coverage = report["coverage"]
    share = "" if coverage is None else f" ({coverage:.1%} of {report['predictions']} predictions)"
    lines = [f"All labels together: {report['labels']}, of which {report['matched']} are used{share}."]
    for name, words in (
        ("late", "used, though they came late"),
        ("before_prediction", "used, though their time is before that of the prediction"),
        ("superseded", "replaced by a later one"),
        ("duplicates", "the same again"),
        ("conflicting", "not used: different labels for one prediction at the same time"),
        ("unknown", "not used: no captured prediction has their key"),
        ("no_key", "without a key"),
        ("no_value", "without a label"),
    ):
        if report[name]:
            lines.append(f"  {report[name]:>8} {words}")
    return [*lines, *(f"  {note}" for note in report["notes"])]
