"""XGBoost and LightGBM, native and wrapped, become correct ONNX or stay pyfunc with a stated reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import onnx
import pandas as pd
import pytest

from mlflow_deploy.conversion import Conversion, lightgbm_onnx, make_servable, xgboost_onnx
from mlflow_deploy.errors import ParityFailed
from mlflow_deploy.serving.inprocess import open_in_process
from tests.integration.conversion.boosting_cases import (
    LIGHTGBM,
    PIPELINES,
    XGBOOST,
    gusts,
    iris_codes,
    lgb,
    xgb,
)
from tests.integration.conversion.cases import Case
from tests.integration.conversion.conftest import SaveModel
from tests.integration.conversion.rows import Rows, iris
from tests.integration.conversion.saving import native_answer, save_booster


def check(case: Case, conversion: Conversion, model: Any, inputs: Any) -> None:
    """The form is the expected one, and all training rows get the library's own answer."""
    assert conversion.servable.kind == case.form, conversion.fallback
    if case.form == "pyfunc":
        assert case.why in conversion.fallback
        return
    assert conversion.parity is not None
    assert conversion.parity.passed
    native = native_answer(model, inputs, case.method)
    served = through_server(conversion, inputs)
    assert served.shape == native.shape
    if native.dtype.kind == "f":
        np.testing.assert_allclose(
            served, native, rtol=1e-4, atol=1e-5 * max(1.0, float(np.median(np.abs(native))))
        )
    else:
        assert (served == native).all()


def through_server(conversion: Conversion, inputs: Any) -> Any:
    """The answer to a request, read and written by the code of the scoring server."""
    if isinstance(inputs, pd.DataFrame):
        rows = inputs.astype(object).where(inputs.notna(), None)
        body: dict[str, Any] = {
            "dataframe_split": {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}
        }
    else:
        body = {"inputs": inputs.tolist()}
    answer = open_in_process(conversion.servable, conversion.content, conversion.signature)
    return np.asarray(json.loads(answer(json.dumps(body).encode()))["predictions"])


@pytest.mark.parametrize("case", [*XGBOOST, *LIGHTGBM], ids=lambda case: case.name)
def test_every_booster_is_correct_onnx_or_pyfunc_with_a_reason(
    case: Case, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, answers = case.data()
    model = case.make().fit(inputs, answers)
    folder = save_booster(model, inputs, tmp_path / "model", monkeypatch)

    # What MLflow loads answers: its flavor loses `missing` of XGBoost's wrappers, for example.
    loaded = mlflow.pyfunc.load_model(str(folder)).get_raw_model()
    check(case, make_servable(folder, work), loaded, inputs)


@pytest.mark.parametrize("case", PIPELINES, ids=lambda case: case.name)
def test_boosters_inside_pipelines(case: Case, save: SaveModel, work: Path) -> None:
    inputs, answers = case.data()
    model = case.make().fit(inputs, answers)

    check(case, make_servable(save(model, inputs, case.method), work), model, inputs)


def test_labels_of_lightgbm_stay_labels(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, answers = iris()
    folder = save_booster(lgb().fit(inputs, answers), inputs, tmp_path / "model", monkeypatch)

    conversion = make_servable(folder, work)

    assert conversion.example is not None
    assert conversion.example["predictions"] == ["setosa"] * 20
    assert set(through_server(conversion, inputs)) == {"setosa", "versicolor", "virginica"}


# --- planted faults ----------------------------------------------------------------------------------------

Fault = Callable[[onnx.ModelProto], None]


def _attributes(model: onnx.ModelProto, name: str) -> list[Any]:
    return [item for node in model.graph.node for item in node.attribute if item.name == name]


def change_one_weight(model: onnx.ModelProto) -> None:
    tensor = _attributes(model, "target_weights_as_tensor")[0].t
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[np.argmax(np.abs(values))] *= 1.05
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_two_labels(model: onnx.ModelProto) -> None:
    for item in model.graph.initializer:
        if item.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.INT64) and item.dims[:] == [3]:
            values = onnx.numpy_helper.to_array(item).copy()
            values[[0, 1]] = values[[1, 0]]
            item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))


def turn_missing_values_round(model: onnx.ModelProto) -> None:
    for item in _attributes(model, "nodes_missing_value_tracks_true"):
        item.ints[:] = [1 - value for value in item.ints]


def forget_the_base(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        kept = [item for item in node.attribute if item.name != "base_values_as_tensor"]
        del node.attribute[:]
        node.attribute.extend(kept)


FAULTS: list[tuple[Fault, Any, Callable[[], Rows], Any]] = [
    (change_one_weight, xgb, gusts, xgboost_onnx),
    (swap_two_labels, xgb, iris_codes, xgboost_onnx),
    (turn_missing_values_round, xgb, gusts, xgboost_onnx),
    (forget_the_base, xgb, gusts, xgboost_onnx),
    (change_one_weight, lgb, gusts, lightgbm_onnx),
    (swap_two_labels, lgb, iris, lightgbm_onnx),
    (turn_missing_values_round, lgb, gusts, lightgbm_onnx),
]


@pytest.mark.parametrize(
    ("fault", "make", "data", "module"),
    FAULTS,
    ids=[f"{fault.__name__}-{module.__name__.rpartition('.')[2]}" for fault, _, _, module in FAULTS],
)
def test_a_planted_fault_is_caught(
    fault: Fault,
    make: Callable[[], Any],
    data: Callable[[], Rows],
    module: Any,
    tmp_path: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, answers = data()
    folder = save_booster(make().fit(inputs, answers), inputs, tmp_path / "model", monkeypatch)
    finish = module.finish

    planted = []

    def finish_wrongly(model: onnx.ModelProto, outputs: Any) -> bytes:
        before = model.SerializeToString()
        fault(model)
        planted.append(model.SerializeToString() != before)
        return bytes(finish(model, outputs))

    monkeypatch.setattr(module, "finish", finish_wrongly)

    with pytest.raises(ParityFailed, match="differs on"):
        make_servable(folder, work, format="onnx")
    assert any(planted)
    assert list(work.iterdir()) == []
