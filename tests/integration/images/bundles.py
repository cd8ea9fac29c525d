"""Bundles to put into images: versions of a registered ONNX model."""

from __future__ import annotations

from pathlib import Path

from mlflow_deploy.bundle import Bundle, ModelSource, write_bundle
from tests.bundles import adder_bundle

MODEL = "Image Test"


def adder(folder: Path, version: int, *, run_id: str = "0123456789abcdef") -> Bundle:
    """Version N of a registered ONNX model, which adds N."""
    plain = adder_bundle(folder / "plain", folder / "work", float(version))
    return write_bundle(
        folder / "store",
        model=ModelSource(
            uri=f"models:/{MODEL}/{version}",
            name=MODEL,
            version=str(version),
            run_id=run_id,
            model_id="m-0123",
            digest="sha256-" + "0" * 64,
        ),
        servable=plain.manifest.servable,
        content=plain.path / "servable",
        documents={name: plain.document(name) for name in ("signature.json", "example.json")},
    )
