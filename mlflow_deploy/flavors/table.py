"""The forms that have a flavor, by name; a form's module is imported when it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mlflow_deploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mlflow_deploy.flavors.base import Form

FLAVORS = ("onnx", "torchscript", "torch_export", "savedmodel", "tflite", "pmml", "sealed")
"""All flavors of this package; each is a module `mlflow_deploy.flavors.<name>`."""

FORMS = tuple(name for name in FLAVORS if name != "sealed")
"""The flavors that are a form of their own; `sealed` is any of them, encrypted."""


def flavor_module(name: str) -> ModuleType:
    """The module of a flavor.

    Raises:
        ConfigError: there is no such flavor.
    """
    if name not in FLAVORS:
        raise ConfigError(
            f"There is no flavor {name!r}",
            why=nearest(name, FLAVORS),
            hint=f"Known flavors: {', '.join(FLAVORS)}",
        )
    return importlib.import_module(f"mlflow_deploy.flavors.{name}")


def form_named(name: str) -> Form:
    """What distinguishes a form from the others.

    Raises:
        ConfigError: there is no such form.
    """
    if name not in FORMS:
        raise ConfigError(
            f"There is no form {name!r}", why=nearest(name, FORMS), hint=f"Known forms: {', '.join(FORMS)}"
        )
    form: Form = flavor_module(name).FORM
    return form
