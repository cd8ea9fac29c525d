"""Faults planted into the converter are caught by parity, however small they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from mlflow_deploy.conversion import make_servable, sklearn_onnx
from mlflow_deploy.errors import ParityFailed
from tests.integration.conversion.cases import HIST, mixed, scaled
from tests.integration.conversion.conftest import SaveModel
from tests.integration.conversion.rows import Rows, cancer, diabetes, flights, iris

Fault = Callable[[ModelProto], None]


def attributes(model: ModelProto, name: str) -> list[Any]:
    return [item for node in model.graph.node for item in node.attribute if item.name == name]


def change_one_weight(model: ModelProto) -> None:
    weights = attributes(model, "coefficients")[0].floats
    position = int(np.argmax(np.abs(weights)))
    weights[position] *= 1.01


def swap_two_labels(model: ModelProto) -> None:
    labels = attributes(model, "classlabels_strings")[0].strings
    labels[0], labels[1] = labels[1], labels[0]


def swap_two_columns_of_probabilities(model: ModelProto) -> None:
    (ids,) = attributes(model, "class_ids")
    ids.ints[:] = [1 - value for value in ids.ints]


def drop_missing_values(model: ModelProto) -> None:
    for item in attributes(model, "nodes_missing_value_tracks_true"):
        item.ints[:] = [1 - value for value in item.ints]


def forget_unknown_category(model: ModelProto) -> None:
    for item in attributes(model, "default_int64"):
        item.i = 0


FAULTS: list[tuple[Fault, Any, Callable[[], Rows], str]] = [
    (change_one_weight, lambda: scaled(LogisticRegression()), cancer, "predict"),
    (change_one_weight, lambda: scaled(LogisticRegression()), cancer, "predict_proba"),
    (change_one_weight, Ridge, diabetes, "predict"),
    (swap_two_labels, lambda: LogisticRegression(max_iter=500), iris, "predict"),
    (swap_two_columns_of_probabilities, lambda: RandomForestClassifier(5), cancer, "predict_proba"),
    (drop_missing_values, lambda: RandomForestClassifier(5), cancer, "predict_proba"),
    (drop_missing_values, lambda: mixed(HIST(max_iter=20)), flights, "predict"),
    (forget_unknown_category, lambda: mixed(HIST(max_iter=20)), flights, "predict_proba"),
]


@pytest.mark.parametrize(
    ("fault", "make", "data", "method"),
    FAULTS,
    ids=[f"{row[0].__name__}-{row[3]}-{i}" for i, row in enumerate(FAULTS)],
)
def test_a_planted_fault_is_caught(
    fault: Fault,
    make: Callable[[], Any],
    data: Callable[[], Rows],
    method: str,
    save: SaveModel,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, answers = data()
    folder = save(make().fit(inputs, answers), inputs, method)
    finish = sklearn_onnx.finish

    def finish_wrongly(model: ModelProto, outputs: Sequence[str]) -> bytes:
        fault(model)
        return finish(model, outputs)

    monkeypatch.setattr(sklearn_onnx, "finish", finish_wrongly)

    with pytest.raises(ParityFailed, match="differs on"):
        make_servable(folder, work, format="onnx")
    conversion = make_servable(folder, work)

    assert conversion.servable.kind == "pyfunc"
    assert "differs on" in conversion.fallback
    assert conversion.rejected["onnx"] in conversion.fallback
    assert list(work.iterdir()) == []

    monkeypatch.setattr(sklearn_onnx, "finish", finish)
    assert make_servable(folder, work).servable.kind == "onnx"
