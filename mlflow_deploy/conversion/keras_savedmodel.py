"""Keras and TensorFlow to SavedModel: one frozen graph, run without Keras and the model's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import networks, tf_graph
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.limits import with_finite
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.runners import Graph

hints = networks.no_hints

CAPABILITIES = frozenset({Capability.TENSOR, Capability.TENSORS})

FOLDER = "saved_model"

REQUIREMENTS = ("numpy", "tensorflow-cpu>=2.21")


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    return tf_graph.refuse(native)


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The one graph; what becomes of NaN in it depends on the processor and the number of rows."""
    return with_finite("float32", partial(_build, native, answer))


def _build(native: NativeModel, answer: Answer, folder: Path) -> Servable:
    frozen = tf_graph.freeze(native, answer)
    place = folder / FOLDER
    place.mkdir()
    (place / "saved_model.pb").write_bytes(tf_graph.saved_model(frozen))
    return Servable(
        kind="savedmodel",
        path=f"{SERVABLE}/{FOLDER}",
        feeds=networks.feeds(native, frozen.inputs),
        outputs=networks.outputs(answer, frozen.outputs),
        answer=answer.form,
        batchable=networks.independent(native),
        requirements=REQUIREMENTS,
    )


def open_graph(servable: Servable, content: Path) -> Graph:
    """The graph, to be compared with the native model."""
    with tf_graph.quiet():
        loaded = tf.saved_model.load(str(content / FOLDER))
    function = loaded.signatures[tf_graph.SIGNATURE]
    names = [output.name for output in servable.outputs]

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        # The function holds its graph weakly.
        assert loaded is not None
        found = function(**{name: tf.constant(array) for name, array in feeds.items()})
        return [np.asarray(found[name]) for name in names]

    return run
