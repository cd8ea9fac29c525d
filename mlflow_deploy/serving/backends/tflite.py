"""Runs TFLite servables with LiteRT: interpreters serve one call at a time, so there is one for each thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Bundle, Servable
from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.tuning import cpu_quota
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings

SIGNATURE = "serving_default"


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the graph.

    Raises:
        MissingExtra: LiteRT is not installed.
        ConfigError: the bundle's feeds or outputs contradict each other.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        missing = "ai-edge-litert"
        raise MissingExtra("The tflite form", "tflite", missing=missing) from error
    graph = TfliteGraph(
        Interpreter,
        # Read once: all interpreters share it, and a sealed one is gone after this.
        bundle.servable_path.read_bytes(),
        settings.intra_op_threads or cpu_quota(),
        bundle.manifest.servable,
    )
    return GraphModel(bundle, settings, graph, ("CPU",))


class TfliteGraph:
    """A TFLite file; idle interpreters wait in a list, of which a call takes one."""

    interruptible = False

    def __init__(self, interpreter: Any, content: bytes, threads: int, servable: Servable) -> None:
        self._interpreter, self._content, self._threads = interpreter, content, threads
        self._outputs = [output.name for output in servable.outputs]
        self._idle: list[_Runner] = []
        self._lock = threading.Lock()
        first = _Runner(self._make(), self._outputs)
        self._idle.append(first)
        free = any(feed.shape[:1] == (-1,) for feed in servable.feeds)
        self._single = free and any(size == 1 for size in first.batches)

    def _make(self) -> Any:
        return self._interpreter(model_content=self._content, num_threads=self._threads)

    def run(self, feeds: Feeds, expires: float) -> list[Array]:
        """The outputs, in the servable's order."""
        with self._lock:
            runner = self._idle.pop() if self._idle else None
        runner = runner or _Runner(self._make(), self._outputs)
        try:
            return self._by_row(runner, feeds) if self._single else runner.run(feeds)
        finally:
            with self._lock:
                self._idle.append(runner)

    def _by_row(self, runner: _Runner, feeds: Feeds) -> list[Array]:
        """The rows one by one, as the file's loops take them."""
        count = len(next(iter(feeds.values())))
        parts = [
            runner.run({name: array[row : row + 1] for name, array in feeds.items()}) for row in range(count)
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def expire(self, now: float) -> None:
        """Do nothing: LiteRT cannot be stopped."""


class _Runner:
    """One interpreter; its inputs keep the shapes of the last call."""

    def __init__(self, interpreter: Any, outputs: list[str]) -> None:
        # The runner calls back into the interpreter.
        self._interpreter = interpreter
        self._run = interpreter.get_signature_runner(SIGNATURE)
        self._outputs = outputs
        details = self._run.get_input_details()
        self._inputs = list(details)
        self.batches = [
            int(item["shape_signature"][0]) for item in details.values() if len(item["shape_signature"])
        ]

    def run(self, feeds: Feeds) -> list[Array]:
        """The outputs; copies, since the interpreter writes the next ones to the same place."""
        found = self._run(**{name: feeds[name] for name in self._inputs})
        return [np.array(found[name]) for name in self._outputs]
