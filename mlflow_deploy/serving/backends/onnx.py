"""Runs ONNX servables with ONNX Runtime: one session, shared by all threads of the worker."""

from __future__ import annotations

import os
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.tuning import cpu_quota
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the graph.

    Raises:
        ConfigError: the bundle's feeds or outputs are not those of the graph.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads or cpu_quota()
    options.inter_op_num_threads = 1
    # Spinning threads burn up to a core while no request comes.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    providers = _providers(ort.get_available_providers())
    session = ort.InferenceSession(os.fspath(bundle.servable_path), options, providers=providers)
    names = [output.name for output in bundle.manifest.servable.outputs]
    return GraphModel(bundle, settings, OnnxGraph(session, names), tuple(session.get_providers()))


class OnnxGraph:
    """An ONNX Runtime session whose runs can be ended from another thread."""

    interruptible = True

    def __init__(self, session: Any, outputs: list[str]) -> None:
        import onnxruntime as ort

        # The Python wrapper around the session checks names and owners of the feeds once more for each call,
        # which costs as much as a small model; the feeds are known to fit.
        self._run = getattr(session, "_sess", session).run
        self._outputs = outputs
        self._options = ort.RunOptions
        self._running: dict[int, tuple[float, Any]] = {}

    def run(self, feeds: Feeds, expires: float) -> list[Array]:
        """The outputs, in the servable's order."""
        options = self._options()
        key = id(options)
        self._running[key] = (expires, options)
        try:
            result: list[Array] = self._run(self._outputs, feeds, options)
        finally:
            del self._running[key]
        return result

    def expire(self, now: float) -> None:
        """End the runs whose `expires` has passed; each raises in its own thread."""
        for expires, options in list(self._running.values()):
            if now > expires:
                options.terminate = True


def _providers(available: list[str]) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in available]
