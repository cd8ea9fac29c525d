"""`mlflow-deploy seal`, `unseal` and `keys`: encrypt models, make keys and change them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

_SOURCE = "file:PATH, env:NAME or command:PROGRAM"


@click.command()
@click.argument("model_uri")
@click.option(
    "--key", "keys", multiple=True, required=True, metavar="SOURCE",
    help=f"Key that opens the model: {_SOURCE}. An RSA public key, or a 256-bit secret. May be repeated.",
)  # fmt: skip
@click.option("--form", default="", help="Form inside: onnx, tflite...; by default the model's own, or onnx.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the model to this new folder.")
@click.option("--log", "name", metavar="NAME", help="Log the model to MLflow under this name.")
@click.option("--register", metavar="MODEL", help="With --log: register it as a version of this model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seal(
    model_uri: str,
    keys: tuple[str, ...],
    form: str,
    output: Path | None,
    name: str | None,
    register: str | None,
    as_json: bool,
) -> None:
    """Encrypt MODEL_URI, an MLflow model's URI or folder, so that only the holders of a key can run it."""
    from mlflow_deploy.flavors import sealed
    from mlflow_deploy.progress import live_progress, mlflow_is_quiet

    _one_destination(output, name, register)
    with live_progress() as progress, _scratch() as work, mlflow_is_quiet():
        folder = output or work / "model"
        progress(f"Sealing {model_uri}")
        sealed.save_model(model_uri, folder, keys=keys, form=form)
        uri = _log(folder, "seal", model_uri, name, register) if name else str(folder)
        _show(uri, _facts(folder), as_json=as_json)


@click.command()
@click.argument("model_uri")
@click.option("--key", default="", metavar="SOURCE", help=f"Key that opens the model: {_SOURCE}.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    help="Write the model in plaintext to this new folder.",
)  # fmt: skip
def unseal(model_uri: str, key: str, output: Path) -> None:
    """Write the sealed model MODEL_URI in plaintext to a folder. A server never needs this."""
    from mlflow_deploy.flavors import sealed

    _refuse_existing(output)
    sealed.unseal(model_uri, output, key=key)
    click.echo(f"Wrote {output} in plaintext")


@click.group()
def keys() -> None:
    """Make, look up and change the keys of sealed models."""


@keys.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--secret", is_flag=True, help="Make a 256-bit secret in place of an RSA pair.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(name: Path, secret: bool, as_json: bool) -> None:
    """Make an RSA pair: NAME.pem is private and opens models, NAME.pub.pem seals them."""
    from mlflow_deploy.errors import ConfigError
    from mlflow_deploy.security.keys import new_pair, new_secret

    private = name.with_name(name.name + (".key" if secret else ".pem"))
    public = None if secret else name.with_name(name.name + ".pub.pem")
    try:
        made = new_secret(private) if public is None else new_pair(private, public)
    except OSError as error:
        raise ConfigError("The key cannot be written", why=error.strerror or str(error)) from error
    if as_json:
        document = {"id": made.id, "private": str(private), "public": None if public is None else str(public)}
        click.echo(json.dumps(document))
        return
    click.echo(f"Made {made.id}")
    click.echo(f"  opens models, keep it secret: {private}")
    if public is not None:
        click.echo(f"  seals models, give it away:   {public}")


@keys.command()
@click.argument("model_uri_or_source")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(model_uri_or_source: str, as_json: bool) -> None:
    """Print the ids of the keys that open a sealed model, or the id of the key at a source like file:PATH."""
    from mlflow_deploy.security.keys import read_key

    if model_uri_or_source.startswith(("file:", "env:", "command:")):
        ids = [read_key(model_uri_or_source).id]
    else:
        from mlflow_deploy.flavors.make import mlflow_folder

        folder = mlflow_folder(model_uri_or_source) or Path(model_uri_or_source)
        ids = _facts(folder)["keys"]
    click.echo(json.dumps(ids) if as_json else "\n".join(ids))


@keys.command()
@click.argument("model_uri")
@click.option("--key", default="", metavar="SOURCE", help=f"Key that opens the model now: {_SOURCE}.")
@click.option(
    "--new-key", "new_keys", multiple=True, required=True, metavar="SOURCE",
    help="Key that opens it afterwards; may be repeated. Keys that are not named do not open it any more.",
)  # fmt: skip
@click.option("--reencrypt", is_flag=True, help="Encrypt the content anew, under a new data key.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the model to this new folder.")
@click.option("--log", "name", metavar="NAME", help="Log the model to MLflow under this name.")
@click.option("--register", metavar="MODEL", help="With --log: register it as a version of this model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate(
    model_uri: str,
    key: str,
    new_keys: tuple[str, ...],
    reencrypt: bool,
    output: Path | None,
    name: str | None,
    register: str | None,
    as_json: bool,
) -> None:
    """Make a copy of the sealed model MODEL_URI that other keys open."""
    from mlflow_deploy.flavors import sealed
    from mlflow_deploy.progress import mlflow_is_quiet

    _one_destination(output, name, register)
    with _scratch() as work, mlflow_is_quiet():
        folder = output or work / "model"
        sealed.rotate(model_uri, folder, key=key, keys=new_keys, reencrypt=reencrypt)
        uri = _log(folder, "rotate keys", model_uri, name, register) if name else str(folder)
        _show(uri, _facts(folder), as_json=as_json)


# --- steps -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-seal-") as folder:
        yield Path(folder)


def _one_destination(output: Path | None, name: str | None, register: str | None) -> None:
    if (output is None) == (name is None):
        raise click.UsageError("Give either --output FOLDER or --log NAME.")
    if register and not name:
        raise click.UsageError("--register needs --log NAME.")
    if output is not None:
        _refuse_existing(output)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise click.UsageError(f"{output} exists; name a new folder.")


def _log(folder: Path, change: str, parent: str, name: str, register: str | None) -> str:
    from mlflow_deploy.flavors.lineage import log_folder

    info = log_folder(folder, change=change, parent=parent, name=name, registered_model_name=register)
    version = info.registered_model_version
    return f"models:/{register}/{version}" if register and version else str(info.model_uri)


def _facts(folder: Path) -> dict[str, Any]:
    from mlflow_deploy.flavors.base import load_form
    from mlflow_deploy.security.seal_format import read_seal

    bundle = load_form(folder, "sealed")
    servable = bundle.manifest.servable
    seal = read_seal(bundle.path / servable.sealed)
    return {"form": servable.kind, "bytes": seal.header.total, "keys": seal.keys}


def _show(uri: str, facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"model_uri": uri, **facts}))
        return
    click.echo(f"Sealed model {uri}: {facts['form']}, {facts['bytes']} bytes in plaintext")
    for key in facts["keys"]:
        click.echo(f"  opens with {key}")
