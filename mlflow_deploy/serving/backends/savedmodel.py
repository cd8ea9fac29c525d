"""Runs SavedModel servables with TensorFlow."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError, MissingExtra
from mlflow_deploy.serving.backends.devices import wants_gpu, without_gpu
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.tuning import cpu_quota
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings

SIGNATURE = "serving_default"


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the graph.

    Raises:
        MissingExtra: TensorFlow is not installed.
        GpuMissing: a GPU is asked for and cannot be used.
        ConfigError: the SavedModel has no serving signature, or the bundle's feeds or outputs are not its own.
    """
    # TensorFlow reads these when it is imported; its own functions refuse once anything has run.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(settings.intra_op_threads or cpu_quota())
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It would take all of the GPU's memory, of which each worker needs a part.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    gpu = wants_gpu(settings)
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise MissingExtra("The savedmodel form", "tensorflow", missing=error.name or "tensorflow") from error
    if settings.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    devices = tf.config.list_logical_devices("GPU")
    if gpu and not devices:
        without_gpu(settings, "the installed TensorFlow is built for CPUs, or does not find CUDA's libraries")
    loaded = tf.saved_model.load(os.fspath(bundle.servable_path))
    if SIGNATURE not in loaded.signatures:
        raise ConfigError(
            f"The SavedModel has no signature {SIGNATURE!r}",
            why=f"it has {sorted(loaded.signatures)}",
            hint="Deploy the model version again to build its bundle anew",
        )
    names = [output.name for output in bundle.manifest.servable.outputs]
    return GraphModel(bundle, settings, SavedModelGraph(tf, loaded, names), ("CUDA" if devices else "CPU",))


class SavedModelGraph:
    """The serving function of a SavedModel."""

    interruptible = False

    def __init__(self, tf: Any, loaded: Any, outputs: list[str]) -> None:
        # A function holds the variables of its model weakly.
        self._loaded = loaded
        self._function = loaded.signatures[SIGNATURE]
        self._constant, self._outputs = tf.constant, outputs

    def run(self, feeds: Feeds, expires: float) -> list[Array]:
        """The outputs, in the servable's order."""
        found = self._function(**{name: self._constant(array) for name, array in feeds.items()})
        return [np.asarray(found[name]) for name in self._outputs]

    def expire(self, now: float) -> None:
        """Do nothing: TensorFlow cannot be stopped."""
