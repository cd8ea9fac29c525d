"""Faults planted into the conversions of a network are caught by parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper

from mlflow_deploy.conversion import make_servable, torch_model, torch_onnx
from mlflow_deploy.errors import ParityFailed
from tests.integration.conversion.nets import save_torch
from tests.integration.conversion.nets import torch_model as network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_torch(*network("MLP"), tmp_path_factory.mktemp("torch") / "model")


def change_one_weight(model: ModelProto) -> None:
    weights = max(model.graph.initializer, key=lambda item: int(np.prod(item.dims)))
    values = numpy_helper.to_array(weights).copy()
    values.flat[int(np.argmax(np.abs(values)))] *= 1.01
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))


def swap_two_outputs(model: ModelProto) -> None:
    weights = next(item for item in model.graph.initializer if 3 in item.dims and len(item.dims) == 2)
    values = numpy_helper.to_array(weights).copy()
    axis = values.shape.index(3)
    values = np.take(values, [1, 0, 2], axis=axis)
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))


@pytest.mark.parametrize("fault", [change_one_weight, swap_two_outputs])
def test_a_fault_in_the_onnx_graph_is_caught(
    fault: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = torch_onnx.finish

    def finish_wrongly(model: ModelProto, outputs: Any) -> bytes:
        fault(model)
        return finish(model, outputs)

    monkeypatch.setattr(torch_onnx, "finish", finish_wrongly)

    with pytest.raises(ParityFailed, match="differs on input example"):
        make_servable(folder, tmp_path, format="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["torchscript", "torch_export"])
def test_a_changed_weight_is_caught_in_the_forms_of_pytorch(
    form: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch_model.module

    def changed(native: Any, answer: Any) -> torch.nn.Module:
        import copy

        wrong = copy.deepcopy(module(native, answer))
        with torch.no_grad():
            next(wrong.parameters()).flatten()[0] += 0.01
        return wrong

    monkeypatch.setattr(torch_model, "module", changed)

    with pytest.raises(ParityFailed, match="differs on input example"):
        make_servable(folder, tmp_path, format=form)
