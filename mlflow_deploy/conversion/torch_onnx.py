"""PyTorch to ONNX with the exporter that torch.export feeds, never the older one, which bakes branches in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnxscript  # noqa: F401 - the exporter needs it, and asks for it too late to name the extra
import torch

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, torch_model
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.graph import finish
from mlflow_deploy.conversion.indices import has_whole_numbers, refuse_negative
from mlflow_deploy.conversion.limits import with_finite
from mlflow_deploy.conversion.native import NativeModel

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR})

FILE = "model.onnx"

OPSET = 18
"""What the exporter's operators are written for; a higher one is reached through a second conversion."""


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    size = sum(tensor.nbytes for tensor in native.raw().state_dict().values())
    if size > networks.LARGEST:
        return f"its weights take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; use format=torch_export"
    return torch_model.refuse_script(native, "ONNX") or torch_model.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The graph; of a model of whole numbers first the one that refuses negative indices, as embeddings do."""
    if has_whole_numbers(native):
        yield from with_finite("float32, indices checked", partial(_build, native, answer, guarded=True))
    yield from with_finite("float32", partial(_build, native, answer))


def _build(native: NativeModel, answer: Answer, folder: Path, *, guarded: bool = False) -> Servable:
    program = torch_model.export(native, answer)
    graph = networks.inputs(native)
    names = tuple(f"output_{index}" for index in range(len(answer.arrays)))
    with torch_model.quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[item.name for item in graph],
            output_names=list(names),
            verbose=False,
        )
    assert exported is not None
    # Each access makes a new one.
    model = exported.model_proto
    if guarded:
        refuse_negative(model)
    (folder / FILE).write_bytes(finish(model, names))
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/{FILE}",
        feeds=networks.feeds(native, graph),
        outputs=networks.outputs(answer, names),
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=("numpy", "onnxruntime>=1.23"),
    )
