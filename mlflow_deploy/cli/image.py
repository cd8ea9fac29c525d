"""`mlflow-deploy image`: build, push, inspect, list and prune container images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlflow_deploy.bundle import Bundle
    from mlflow_deploy.images.builder import BuiltImage
    from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]

_MEGA = 1_000_000


@click.group()
def image() -> None:
    """Build and look after container images of models."""


def _spec_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say what the image is made of."""
    options = [
        click.option(
            "-C", "--config", "pairs", multiple=True, metavar="KEY=VALUE", help="Setting of the image or, as "
            "deploy.KEY, of the deployment (deploy.format=pyfunc). See `mlflow-deploy image settings`.",
        ),
        click.option(
            "--config-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="YAML file with settings of the image.",
        ),
        click.option("--platform", help="Platform, linux/amd64 or linux/arm64; the same as -C platform=."),
        click.option("--refresh", is_flag=True, help="Resolve the requirements again, for newer versions."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@image.command()
@click.argument("model_uri")
@_spec_options
@click.option("--pull", is_flag=True, help="Ask the registry for a newer base image first.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Write the build context with its Dockerfile to this folder instead of building.",
)  # fmt: skip
@click.option("--sbom", type=click.Path(path_type=Path), help="Write the bill of materials to this file.")
@click.option(
    "--log-sbom/--no-log-sbom", default=True, show_default=True,
    help="Log the bill of materials as an artifact of the model's MLflow run.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def build(
    model_uri: str,
    pairs: tuple[str, ...],
    config_file: Path | None,
    platform: str | None,
    refresh: bool,
    pull: bool,
    output: Path | None,
    sbom: Path | None,
    log_sbom: bool,
    as_json: bool,
) -> None:
    """Build the image of MODEL_URI, or of the bundle in a folder. Does nothing when it exists."""
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        spec, bundle = _prepared(model_uri, pairs, config_file, platform, progress, engine=output is None)
        if output is not None:
            _write(bundle, spec, output, progress, refresh=refresh, as_json=as_json)
            return
        built = _build(bundle, spec, progress, refresh=refresh, pull=pull)
        if sbom is not None:
            sbom.write_text(json.dumps(built.sbom, indent=1) + "\n", encoding="utf-8")
        if log_sbom and not built.reused:
            _log_sbom(bundle, built)
    _show(built, as_json=as_json)


@image.command()
@click.argument("model_uri_or_image")
@_spec_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def push(
    model_uri_or_image: str,
    pairs: tuple[str, ...],
    config_file: Path | None,
    platform: str | None,
    refresh: bool,
    as_json: bool,
) -> None:
    """Build the image of a model URI if need be, and push it; or push an image that is there.

    The registry is the first part of `-C repository=REGISTRY/NAME`. Credentials come from `docker login`.
    """
    from mlflow_deploy.images.builder import push_image
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        name = model_uri_or_image
        if _is_model(name):
            spec, bundle = _prepared(name, pairs, config_file, platform, progress, engine=True)
            name = _build(bundle, spec, progress, refresh=refresh, pull=False).name
        digest = push_image(name, progress)
    click.echo(json.dumps({"name": name, "digest": digest}) if as_json else f"Pushed {name} as {digest}")


@image.command()
@click.argument("model_uri_or_image")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with layers and the bill of materials.")
def inspect(model_uri_or_image: str, as_json: bool) -> None:
    """Show the images of a model URI, or the one of a name."""
    from mlflow_deploy.images.catalog import inspect_images

    what = model_uri_or_image
    if what.startswith(("models:/", "runs:/")):
        from mlflow_deploy.lifecycle.registry import resolve

        what = resolve(what).uri
    found = inspect_images(what)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for each in found:
        names = ", ".join(each["names"]) or each["id"]
        size = each["bytes"] / _MEGA
        click.echo(
            f"{names}\n  {each['platform']}, {size:.0f} MB, user {each['user']}, {each['created'][:19]}"
        )
        click.echo(f"  {len(each['sbom']['components'])} components in the bill of materials")
        for key, value in sorted(each["labels"].items()):
            click.echo(f"  {key} = {value}")


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the images of models on the engine."""
    from mlflow_deploy.images.catalog import list_images

    _show_images(list_images(), as_json=as_json, none="No images. Make one with: mlflow-deploy image build")


@image.command()
@click.argument("model", required=False, default="")
@click.option(
    "--keep", type=click.IntRange(min=0), default=2, show_default=True, help="Images of each model."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(model: str, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old images, runtimes that nothing needs, and what killed builds left.

    MODEL, the name of a registered model or a model URI, limits it to the images of that model. An image
    that a container was made from is never removed.
    """
    from mlflow_deploy.images.catalog import prune_images
    from mlflow_deploy.progress import live_progress

    with live_progress() as progress:
        removed = prune_images(keep=keep, dry_run=dry_run, progress=progress, model=model)
    _show_images(removed, as_json=as_json, none="Nothing to remove.")


@image.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def settings(as_json: bool) -> None:
    """Show every setting of an image with its default and meaning."""
    from mlflow_deploy.images.spec import ENVIRONMENT, ImageSpec

    rows = [
        {
            "key": key,
            "default": "" if field.default is None else str(field.default),
            "doc": str(field.description),
        }
        for key, field in ImageSpec.model_fields.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['key']} (default {row['default'] or 'unset'})\n    {row['doc']}")
    click.echo(f"\nGive them as -C KEY=VALUE, or for every build as the variable {ENVIRONMENT}KEY.")


# --- steps -------------------------------------------------------------------------------------------------


def _is_model(text: str) -> bool:
    return ":/" in text or Path(text).is_dir()


def _prepared(
    model_uri: str,
    pairs: tuple[str, ...],
    config_file: Path | None,
    platform: str | None,
    progress: Progress,
    *,
    engine: bool,
) -> tuple[ImageSpec, Bundle]:
    """The image's spec and the bundle to put into it; a folder with a bundle is taken as it is.

    Args:
        engine: the image will be built here, so that a missing engine is told before a model is converted.
    """
    from mlflow_deploy.bundle import MANIFEST, read_bundle
    from mlflow_deploy.config import parse_spec, read_spec_file
    from mlflow_deploy.images.engine import connect
    from mlflow_deploy.images.spec import parse_image_spec
    from mlflow_deploy.lifecycle.release import prepare

    config: dict[str, Any] = read_spec_file(config_file) if config_file else {}
    config.update(_pairs(pairs))
    if platform:
        config["platform"] = platform
    deploy = {
        key.removeprefix("deploy."): config.pop(key) for key in list(config) if key.startswith("deploy.")
    }
    spec = parse_image_spec(config)
    deployment = parse_spec(deploy)
    if engine:
        with connect():
            progress("The engine answers")
    if (Path(model_uri) / MANIFEST).is_file():
        return spec, read_bundle(Path(model_uri))
    return spec, prepare(model_uri, deployment, progress)


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    config = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="-C")
        config[key] = value
    return config


def _build(bundle: Bundle, spec: ImageSpec, progress: Progress, *, refresh: bool, pull: bool) -> BuiltImage:
    from mlflow_deploy.images.builder import build_image

    return build_image(bundle, spec, progress, refresh=refresh, pull=pull)


def _write(
    bundle: Bundle, spec: ImageSpec, output: Path, progress: Progress, *, refresh: bool, as_json: bool
) -> None:
    from mlflow_deploy.images.context import plan_image, write_context

    plan = plan_image(bundle, spec, progress, refresh=refresh)
    write_context(plan, output, progress)
    if as_json:
        click.echo(json.dumps({"name": plan.name, "context": plan.digest, "output": str(output)}))
    else:
        click.echo(f"Build it with: docker build -t {plan.name} {output}")


def _log_sbom(bundle: Bundle, built: BuiltImage) -> None:
    """Log the bill of materials to the model's run; an image is good without it, so a failure only warns."""
    run_id = bundle.manifest.model.run_id
    if not run_id:
        return
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    path = f"mlflow-deploy/images/{built.name.replace('/', '_').replace(':', '_')}.cdx.json"
    try:
        MlflowClient().log_dict(run_id, built.sbom, path)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        click.echo(f"Warning: the bill of materials was not logged to run {run_id}: {reason}", err=True)


def _show(built: BuiltImage, *, as_json: bool) -> None:
    if as_json:
        document = {key: value for key, value in dataclasses.asdict(built).items() if key != "sbom"}
        click.echo(json.dumps({**document, "components": len(built.sbom["components"])}, indent=2))
        return
    done = "exists" if built.reused else f"built in {built.seconds:.1f} s"
    above = (
        "" if built.bytes_above_base is None else f", {built.bytes_above_base / _MEGA:.0f} MB above its base"
    )
    click.echo(f"{built.name} {done}: {built.bytes / _MEGA:.0f} MB{above}")


def _show_images(found: list[Any], *, as_json: bool, none: str) -> None:
    from mlflow_deploy.images import labels

    if as_json:
        click.echo(json.dumps([dataclasses.asdict(status) for status in found], indent=2))
        return
    if not found:
        click.echo(none)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("IMAGE", "MODEL", "VERSION", "FORMAT", "DEVICE", "SIZE", "CREATED", "USED"):
        table.add_column(column, overflow="fold")
    for status in found:
        table.add_row(
            escape(status.shown),
            escape(status.label(labels.MODEL_NAME) or status.label(labels.MODEL_URI) or status.kind),
            escape(status.label(labels.MODEL_VERSION)),
            status.label(labels.FORMAT),
            status.label(labels.DEVICE),
            f"{status.bytes / _MEGA:.0f} MB",
            status.created[:19].replace("T", " "),
            "yes" if status.in_use else "",
        )
    Console().print(table)
