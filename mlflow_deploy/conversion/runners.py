"""Servables run in this process, so that parity is measured on the very file that will be served."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.feeds import Array, build_feeds, read_answer
from mlflow_deploy.errors import MissingExtra

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows


class Runner(Protocol):
    """A servable that answers rows."""

    def run(self, rows: Rows) -> Answer:
        """The servable's answer for rows, as the server would give it."""
        ...


class Graph(Protocol):
    """A loaded graph: what a form has to offer here, and all of it."""

    def __call__(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs in the order of `servable.outputs`, from arrays by the names of `servable.feeds`."""
        ...


GRAPHS: dict[str, str] = {
    "onnx": "mlflow_deploy.conversion.runners:open_onnx",
    "pmml": "mlflow_deploy.conversion.sklearn_pmml:open_graph",
    "torchscript": "mlflow_deploy.conversion.torch_script:open_graph",
    "torch_export": "mlflow_deploy.conversion.torch_export:open_graph",
    "savedmodel": "mlflow_deploy.conversion.keras_savedmodel:open_graph",
    "tflite": "mlflow_deploy.conversion.keras_tflite:open_graph",
}
"""Form -> `module:function`; the function takes the servable and the folder of its files and gives a Graph."""


class GraphRunner:
    """Rows to feeds, feeds through a graph, outputs to answers: the same for all forms."""

    def __init__(self, servable: Servable, graph: Graph) -> None:
        self._servable, self._graph = servable, graph

    def run(self, rows: Rows) -> Answer:
        return read_answer(self._servable, self._graph(build_feeds(self._servable.feeds, rows)))


def open_onnx(servable: Servable, content: Path) -> Graph:
    """An ONNX graph in ONNX Runtime on one thread."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("The ONNX form", "sklearn", missing="onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Errors are raised as exceptions and reported; printing them too would only confuse.
    options.log_severity_level = 4
    # By path, so that a graph finds weights that lie in a file beside it.
    path = content / Path(servable.path).name
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in servable.outputs]

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(names, dict(feeds))
        return outputs

    return run


def open_runner(servable: Servable, content: Path) -> Runner:
    """A runner for the servable whose files lie in the folder `content`; raises what `open_graph` raises."""
    return GraphRunner(servable, open_graph(servable, content))


def open_graph(servable: Servable, content: Path) -> Graph:
    """The loaded graph of the servable whose files lie in the folder `content`.

    Raises:
        ValueError: servables of this kind cannot be run here.
        Exception: whatever the form's library raises when it loads the servable.
    """
    if servable.kind not in GRAPHS:
        raise ValueError(f"servables of kind {servable.kind!r} cannot be run here")
    module, _, name = GRAPHS[servable.kind].partition(":")
    graph: Graph = getattr(importlib.import_module(module), name)(servable, content)
    return graph
