"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., None])


def target_option(command: _Command) -> _Command:
    """`-t`; without it the deployment is looked for on every target that this machine can reach."""
    option = click.option(
        "-t", "--target", help="Target of the deployment, local or docker; found by itself when left out."
    )
    return option(command)


def config_options(command: _Command) -> _Command:
    """`-m`, `-f` and `-C` with the meaning that they have for `mlflow deployments`."""
    for option in (
        click.option("-C", "--config", "pairs", multiple=True, metavar="KEY=VALUE", help="Setting."),
        click.option("-f", "--flavor", help="Form to serve, such as onnx or pyfunc; the same as -C format=."),
        click.option("-m", "--model-uri", help="Model version; the one that serves when left out."),
    ):
        command = option(command)
    return command


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """`-C KEY=VALUE` options as a mapping.

    Raises:
        click.BadParameter: one of them has no '=', or a key comes twice.
    """
    config: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in config:
            why = "comes twice" if equals else "is not KEY=VALUE"
            raise click.BadParameter(f"{pair!r} {why}", param_hint="-C")
        config[key] = value
    return config
