"""PyTorch to torch.export: the program as a .pt2 file, run by PyTorch without the model's Python code."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, torch_model
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.runners import Graph

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR})

FILE = "model.pt2"

_UNUSED = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What nodes remember of the Python code: paths and lines of the machine that converted."""


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return torch_model.refuse_script(native, "torch.export") or torch_model.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The one program."""
    yield Candidate(label="float32", build=partial(_build, native, answer))


def _build(native: NativeModel, answer: Answer, folder: Path) -> Servable:
    program = torch_model.export(native, answer)
    (folder / FILE).write_bytes(_bytes(program))
    graph = networks.inputs(native)
    return Servable(
        kind="torch_export",
        path=f"{SERVABLE}/{FILE}",
        feeds=networks.feeds(native, graph),
        outputs=networks.outputs(answer, tuple(f"output_{index}" for index in range(len(answer.arrays)))),
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=torch_model.REQUIREMENTS,
    )


def _bytes(program: torch.export.ExportedProgram) -> bytes:
    """The file: without example inputs, which would be a pickle, and without traces of this machine."""
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                for key in _UNUSED:
                    node.meta.pop(key, None)
    program.example_inputs = None
    buffer = io.BytesIO()
    with torch_model.quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def open_graph(servable: Servable, content: Path) -> Graph:
    """The program, to be compared with the native model."""
    with torch_model.quiet():
        program = torch.export.load(content / Path(servable.path).name).module()
    names = [feed.name for feed in servable.feeds]

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            return torch_model.listed(program(*torch_model.tensors(feeds, names)))

    return run
