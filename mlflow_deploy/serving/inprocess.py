"""A servable that answers bodies of /invocations in this process: the server without its sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.bundle import (
    SCHEMA,
    SERVABLE,
    SIGNATURE,
    Bundle,
    FileEntry,
    Manifest,
    ModelSource,
    Servable,
)
from mlflow_deploy.serving.backends.base import Model, load_model
from mlflow_deploy.settings import ServingSettings


def open_in_process(
    servable: Servable, content: Path, signature: Mapping[str, Any] | None
) -> Callable[[bytes], bytes]:
    """Load a servable in the back end that serves it.

    Args:
        content: folder with the servable's files.
        signature: the MLflow signature as JSON.

    Returns:
        A function from the body of a request to the body of its answer: parsing, computing, writing.

    Raises:
        Exception: whatever the back end raises.
    """
    model, _ = load_in_process(servable, content, signature)

    def answer(body: bytes) -> bytes:
        return model.to_json(model.run(model.parse_json(body)))

    return answer


def load_in_process(
    servable: Servable, content: Path, signature: Mapping[str, Any] | None
) -> tuple[Model, Bundle]:
    """The same as the model itself, and the bundle that was made for it, without a name and digests."""
    root = Path(tempfile.mkdtemp(prefix="mlflow-deploy-"))
    # A copy that costs nothing where the file system can, since MLflow takes no model folder that is a link.
    shutil.copytree(content, root / SERVABLE, copy_function=_link_or_copy)
    files = {}
    if signature is not None:
        (root / SIGNATURE).write_bytes(msgspec.json.encode(signature))
        files[SIGNATURE] = FileEntry(sha256="", bytes=0)
    manifest = Manifest(schema=SCHEMA, model=ModelSource(uri=""), servable=servable, files=files)
    bundle = Bundle(path=root, manifest=manifest, digest="")
    model = load_model(bundle, ServingSettings())
    # Some back ends read their files late, so the folder lives as long as the model.
    weakref.finalize(model, shutil.rmtree, root)
    return model, bundle


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system.
        shutil.copy2(source, target)
