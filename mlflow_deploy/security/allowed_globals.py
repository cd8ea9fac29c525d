"""Which globals a pickle of a model may hold: exact names, one list for each library."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from mlflow_deploy.security.pickle_globals import Global

_FOLDER = Path(__file__).with_name("allowed")
_LISTS: dict[str, tuple[str, ...]] = {
    # A pipeline may end in a boosted model.
    "sklearn": ("sklearn", "xgboost", "lightgbm"),
    "xgboost": ("sklearn", "xgboost"),
    "lightgbm": ("sklearn", "lightgbm"),
    "pytorch": ("torch",),
}
"""MLflow flavor -> lists, besides the common one. Flavors that are not named keep no pickles of a library."""

FLAVORS = tuple(_LISTS)
"""Flavors with a list of their own."""


def allowed_globals(flavors: Iterable[str]) -> frozenset[Global]:
    """The globals that pickles of these flavors may hold.

    The lists name single classes and functions, never whole modules: next to harmless names there are such as
    `numpy.f2py.crackfortran.myeval` or `torch.storage._load_from_bytes`, which run what they are given.
    """
    lists = {"common"}.union(*(_LISTS.get(flavor, ()) for flavor in flavors))
    return frozenset().union(*(_read(name) for name in lists))


@functools.cache
def _read(name: str) -> frozenset[Global]:
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found: set[Global] = set()
    for line in lines:
        if not line.startswith("#"):
            module, _, names = line.partition(":")
            found.update(Global(module, item) for item in names.split())
    return frozenset(found)
