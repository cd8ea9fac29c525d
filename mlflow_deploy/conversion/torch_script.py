"""PyTorch to TorchScript: scripted where the code allows it, else traced; reproducible files."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.jit import TracerWarning  # type: ignore[attr-defined] # it is documented

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, torch_model
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.runners import Graph

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR})

FILE = "model.ts"

_MANGLED = re.compile(rb"___torch_mangle_(\d+)")
"""PyTorch numbers classes in the order in which a process meets them."""


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    if isinstance(native.raw(), torch.fx.GraphModule):
        return (
            "the model was logged as an exported program (serialization_format='pt2'), which TorchScript "
            "cannot read; use format=torch_export, or log it with serialization_format='pickle'"
        )
    return torch_model.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """Scripted first: it keeps branches that depend on values, which a trace decides once and for all."""
    yield Candidate(label="scripted", build=partial(_build, native, answer, _scripted))
    if not isinstance(native.raw(), torch.jit.ScriptModule):
        yield Candidate(label="traced", build=partial(_build, native, answer, _traced))


def _scripted(model: torch.nn.Module, _: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    try:
        return torch.jit.script(model)
    except Exception as error:
        raise NotImplementedError(f"torch.jit.script says: {networks.first_line(error)}") from error


def _traced(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracerWarning)
        # Its own check compares traces, not answers, and fails on attention; parity compares answers.
        made: torch.jit.ScriptModule = torch.jit.trace(model, example, check_trace=False)
    own = Path(torch.__file__).parent
    for warning in caught:
        # PyTorch's own layers check shapes, which is harmless.
        if issubclass(warning.category, TracerWarning) and own not in Path(warning.filename).parents:
            raise NotImplementedError(
                "its forward decides on values of tensors, which a trace decides once and for all; "
                "write it so that torch.jit.script can read it, with torch.where, or use format=torch_export"
            )
    return made


def _build(
    native: NativeModel,
    answer: Answer,
    make: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], torch.jit.ScriptModule],
    folder: Path,
) -> Servable:
    graph = networks.inputs(native)
    with torch_model.quiet(), torch.no_grad():
        made = make(torch_model.module(native, answer), torch_model.tracing(native)).eval()
        frozen = torch.jit.freeze(made) if hasattr(made, "training") else made
        (folder / FILE).write_bytes(_bytes(frozen))
    return Servable(
        kind="torchscript",
        path=f"{SERVABLE}/{FILE}",
        feeds=networks.feeds(native, graph),
        outputs=networks.outputs(answer, tuple(f"output_{index}" for index in range(len(answer.arrays)))),
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=torch_model.REQUIREMENTS,
    )


def _bytes(module: torch.jit.ScriptModule) -> bytes:
    """The file without what varies: source lines of this machine, and numbers of classes in this process."""
    saved = io.BytesIO()
    torch.jit.save(module, saved)
    saved.seek(0)
    reader = torch._C.PyTorchFileReader(saved)
    kept = [
        name
        for name in reader.get_all_records()
        if not name.endswith(".debug_pkl") and name not in (".data/serialization_id", "version", "byteorder")
    ]
    records = {name: reader.get_record(name) for name in kept}
    found = {match for name in kept for match in _MANGLED.findall(name.encode())}
    numbers = {number: str(index).encode() for index, number in enumerate(sorted(found, key=int))}

    def renumber(text: bytes) -> bytes:
        return _MANGLED.sub(lambda match: b"___torch_mangle_" + numbers.get(match[1], match[1]), text)

    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder:
        # The writer names the folder inside the archive after the file.
        path = Path(folder) / FILE
        writer = torch._C.PyTorchFileWriter(str(path))
        for name in kept:
            content = records[name]
            # Weights are binary; class names stand in the code and in the pickles that name them.
            if name.endswith((".py", ".pkl")):
                content = renumber(content)
            writer.write_record(renumber(name.encode()).decode(), content, len(content))
        writer.write_end_of_file()
        return path.read_bytes()


def open_graph(servable: Servable, content: Path) -> Graph:
    """The module, to be compared with the native model."""
    with torch_model.quiet():
        module = torch.jit.load(content / Path(servable.path).name)
    names = [feed.name for feed in servable.feeds]

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            return torch_model.listed(module(*torch_model.tensors(feeds, names)))

    return run
