"""`mlflow-deploy release show`: what was released, from what, by whom, and what served at a moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mlflow_deploy.cli.options import target_option

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.records.record import ReleaseRecord
    from mlflow_deploy.lifecycle.records.served import ServedAt


@click.group()
def release() -> None:
    """Look at what was released; the records stay when a deployment is removed."""


@release.command()
@click.argument("name")
@click.argument("revision", type=int, required=False, metavar="[REV]")
@click.option("--record", type=int, help="Show this record, by its number.")
@click.option("--at", metavar="TIME", help="Show what served then, such as 2026-03-03T12:00+01:00.")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    name: str, revision: int | None, record: int | None, at: str | None, target: str | None, as_json: bool
) -> None:
    """Show the last release record of NAME, or the last one of its revision REV, or what served at a moment."""
    import msgspec

    from mlflow_deploy.errors import ConfigError
    from mlflow_deploy.lifecycle.records.moments import parse_moment
    from mlflow_deploy.lifecycle.records.reading import released
    from mlflow_deploy.lifecycle.records.recorder import catch_up
    from mlflow_deploy.lifecycle.records.served import served_at
    from mlflow_deploy.targets.finder import find_archive

    if at and (revision is not None or record is not None):
        raise ConfigError("--at and a record contradict each other", hint="Give one of them")
    moment = parse_moment(at) if at else None
    place = find_archive(name, target)
    if busy := catch_up(place, name):
        click.echo(busy, err=True)
    if moment:
        found = served_at(place, name, moment)
        click.echo(
            json.dumps(msgspec.to_builtins(found, str_keys=True), indent=2) if as_json else _told(found)
        )
        return
    one = released(place, name, revision=revision, record=record)
    click.echo(json.dumps(msgspec.to_builtins(one, str_keys=True), indent=2) if as_json else _page(one))


def _told(found: ServedAt) -> str:
    if not found.shares:
        since = f" since {found.since}" if found.since else ""
        return f"At {found.at} nothing served as {found.deployment}{since}: {found.reason}"
    lines = [f"At {found.at} {found.deployment} on {found.target} served, since {found.since}:"]
    for number, share in sorted({**dict.fromkeys(found.copies, 0), **found.shares}.items()):
        model = found.served[number].model if number in found.served else "unknown"
        copies = f", copies of {found.copies[number]} %" if number in found.copies else ""
        lines.append(f"  revision {number}: {share} %{copies}  {model}")
    approved = f", approved by {', '.join(found.approvers)}" if found.approvers else ""
    source = f"record {found.record}, {found.action}" if found.record else found.action
    lines.append(f"{source} by {found.requester}{approved}: {found.reason}")
    return "\n".join(lines)


def _page(one: ReleaseRecord) -> str:
    rows = {
        "record": f"{one.number} of {one.deployment} on {one.target}",
        "hash": one.hash,
        "previous": one.previous or "none",
        "action": f"{one.action} {one.outcome}",
        "reason": one.reason,
        "decided": f"{one.at} (begun {one.began_at})",
        "recorded late": one.late,
        "requester": one.requester,
        "approvers": ", ".join(one.approvers),
        "revision": str(one.revision or ""),
        "model": one.model.uri,
        "model digest": one.model.digest,
        "bundle": one.bundle,
        "image": one.image,
        "form": one.format,
        "parity": (one.parity or {}).get("summary", "") if isinstance(one.parity, dict) else "",
        "evidence": ", ".join(sorted(one.evidence)),
    }
    width = max(map(len, rows))
    lines = [f"{key:<{width}}  {value}" for key, value in rows.items() if value]
    for point in one.timeline:
        shares = " ".join(f"{number}={share}" for number, share in sorted(point.weights.items())) or "none"
        copies = "".join(f", copies {number}={share}" for number, share in sorted(point.copies.items()))
        lines.append(f"{point.at}  {shares}{copies}  {point.reason}".rstrip())
    return "\n".join(lines)
