"""Runs ONNX servables with ONNX Runtime: one session, shared by all threads of the worker."""

from __future__ import annotations

import os

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.feeds import Feeds
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

    def run_graph(feeds: Feeds) -> list[Array]:
        result: list[Array] = session.run(names, feeds)
        return result

    return GraphModel(bundle, settings, run_graph, tuple(session.get_providers()))


def _providers(available: list[str]) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in available]
