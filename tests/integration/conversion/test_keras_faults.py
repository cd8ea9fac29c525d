"""Faults planted into the frozen graph of a Keras network are caught by parity in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy.conversion import tf_graph
from mlflow_deploy.conversion.attempt import Rejection, attempt
from mlflow_deploy.conversion.base import converters_for
from mlflow_deploy.errors import ParityFailed
from tests.integration.conversion.attempts import Forms
from tests.integration.conversion.nets import keras_model, save_keras


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    root = tmp_path_factory.mktemp("keras")
    return Forms(save_keras(*keras_model("MLP"), root / "model"), root / "work")


def weights_of(graph: Any, columns: int) -> Any:
    """The matrix constant with this number of columns, as an array that `put` writes back."""
    import tensorflow as tf

    for node in graph.node:
        if node.op == "Const":
            values = tf.make_ndarray(node.attr["value"].tensor)
            if values.ndim == 2 and values.shape[1] == columns:
                return node, values.copy()
    raise AssertionError("no such matrix")


def put(node: Any, values: Any) -> None:
    import tensorflow as tf

    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))


def change_one_weight(graph: Any) -> None:
    node, values = weights_of(graph, 12)
    values.flat[int(np.argmax(np.abs(values)))] *= 1.02
    put(node, values)


def swap_two_outputs(graph: Any) -> None:
    node, values = weights_of(graph, 3)
    put(node, values[:, [1, 0, 2]])


@pytest.mark.parametrize("fault", [change_one_weight, swap_two_outputs])
def test_a_fault_is_caught_in_every_form(fault: Any, forms: Forms, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = tf_graph.freeze

    def freeze_wrongly(*arguments: Any, **settings: Any) -> tf_graph.Frozen:
        frozen = freeze(*arguments, **settings)
        fault(frozen.graph)
        return frozen

    monkeypatch.setattr(tf_graph, "freeze", freeze_wrongly)

    for form in ("onnx", "tflite", "savedmodel"):
        (entry,) = converters_for(forms.native.loader, form)
        outcome = attempt(forms.case, entry)
        assert isinstance(outcome, Rejection), form
        assert isinstance(outcome.error, ParityFailed)
        assert "differs on input example" in outcome.why
    assert list(Path(forms.work).iterdir()) == []
