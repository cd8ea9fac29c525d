"""Servables run in this process, so that parity is measured on the very file that will be served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion.feeds import Array, build_feeds, read_answer
from mlflow_deploy.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd


class Runner(Protocol):
    """A servable that answers rows."""

    def run(self, rows: pd.DataFrame) -> Array:
        """The servable's answer for rows, as the server would give it."""
        ...


class OnnxRunner:
    """An ONNX graph in ONNX Runtime on one thread."""

    def __init__(self, servable: Servable, content: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtra("The ONNX form", "sklearn", missing="onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # Errors are raised as exceptions and reported; printing them too would only confuse.
        options.log_severity_level = 4
        path = content / Path(servable.path).name
        self._servable = servable
        self._session: Any = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, rows: pd.DataFrame) -> Array:
        names = [output.name for output in self._servable.outputs]
        outputs = self._session.run(names, build_feeds(self._servable.feeds, rows))
        return read_answer(self._servable, outputs)


def open_runner(servable: Servable, content: Path) -> Runner:
    """A runner for the servable whose files lie in the folder `content`."""
    if servable.kind == "onnx":
        return OnnxRunner(servable, content)
    raise ValueError(f"servables of kind {servable.kind!r} cannot be run here")
