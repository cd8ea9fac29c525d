"""What was made and found of versions before: bundles and gates' verdicts, by all that they rest on."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.bundle import Bundle, ModelSource, read_bundle
from mlflow_deploy.config import DeploymentSpec, state_home
from mlflow_deploy.errors import BundleError
from mlflow_deploy.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "prepared"
"""Folder of the state folder; it can be removed at any time."""

_DAYS = 30
_LOG = logging.getLogger("mlflow_deploy")


def key_of(what: str, rests_on: Mapping[str, Any]) -> str:
    """A key that is another one as soon as anything that the finding rests on is another.

    That is also this machine, its Python, the packages in it, and this package's own files.

    Args:
        what: kind of the finding.
        rests_on: plain values, and digests of what is large.
    """
    text = json.dumps([what, _environment(), rests_on], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def recall(key: str) -> dict[str, Any] | None:
    """What was kept under a key; None when there is nothing, or only what is older than 30 days."""
    file = state_home() / FOLDER / f"{key}.json"
    try:
        if time.time() - file.stat().st_mtime > _DAYS * 86_400:
            return None
        found: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("%s cannot be read and is made again: %s", file, error)
        return None
    return found


def keep(key: str, found: Mapping[str, Any]) -> None:
    """Keep a finding, and remove those that are too old; when it cannot be kept, it is made again next time."""
    folder = state_home() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(folder / f"{key}.json", json.dumps(found, default=str).encode())
        for each in folder.iterdir():
            if time.time() - each.stat().st_mtime > _DAYS * 86_400:
                each.unlink(missing_ok=True)
    except OSError as error:
        _LOG.warning("what was found cannot be kept in %s: %s", folder, error)


def bundle_key(source: ModelSource, spec: DeploymentSpec, rows: list[pd.DataFrame | None]) -> str:
    """The key of a bundle: the model's files, the settings and the rows that it was made from.

    Returns:
        The key; empty where the rows have no digest, so that the bundle is made each time.
    """
    digests = [digest_of(each) for each in rows]
    if "" in digests:
        return ""
    import msgspec

    made_from = {"model": msgspec.to_builtins(source), "spec": spec.model_dump(mode="json"), "rows": digests}
    return key_of("bundle", made_from)


def recall_bundle(key: str) -> Bundle | None:
    """The bundle that was made under a key, when it is there and whole."""
    found = recall(key) if key else None
    if found is None:
        return None
    try:
        return read_bundle(state_home() / "bundles" / str(found["bundle"]))
    except BundleError:
        # `mlflow-deploy prune --bundles` removes what no deployment refers to.
        return None


def digest_of(frame: pd.DataFrame | None) -> str:
    """A digest of a table's columns and values; `none` without one, empty for values that have no digest."""
    if frame is None:
        return "none"
    import pandas as pd

    try:
        values = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
    except TypeError:
        return ""
    columns = json.dumps([[str(name), str(kind)] for name, kind in frame.dtypes.items()])
    return hashlib.sha256(columns.encode() + values).hexdigest()


@functools.cache
def _environment() -> str:
    """What code runs here, in short."""
    own = Path(__file__).parents[1]
    seen: list[str] = [sys.version, sys.prefix, platform.node(), platform.machine()]
    for file in sorted(own.rglob("*.py")):
        stat = file.stat()
        seen.append(f"{file.relative_to(own)} {stat.st_size} {stat.st_mtime_ns}")
    for place in sys.path:
        seen += sorted(f"{each.name} {each.stat().st_mtime_ns}" for each in Path(place).glob("*.dist-info"))
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()
