"""The reference profile of a bundle: made as requests are captured, or a note that says why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from mlflow_deploy.bundle import Bundle, Feed, Output, Servable
from mlflow_deploy.conversion.choose import Conversion
from mlflow_deploy.conversion.validation import Validation
from mlflow_deploy.lifecycle.reference import MOST_ROWS, Reference, make_reference
from mlflow_deploy.monitoring import ReferenceProfile, detect_drift
from mlflow_deploy.settings import CaptureSettings
from tests.bundles import adder_bundle


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """Adds two to column `x`."""
    folder = tmp_path_factory.mktemp("adder")
    bundle: Bundle = adder_bundle(folder / "store", folder, 2.0)
    return Conversion(
        content=bundle.path / "servable",
        servable=bundle.manifest.servable,
        signature=bundle.document("signature.json"),
    )


def made(conversion: Conversion, frame: pd.DataFrame, **capture: tuple[str, ...]) -> Reference:
    validation = Validation(frame=frame, label=None, source="test")
    return make_reference(conversion, validation, CaptureSettings(**capture), lambda _: None)  # type: ignore[arg-type]


def profile_of(reference: Reference) -> ReferenceProfile:
    import msgspec

    assert reference.profile is not None, reference.notes
    return ReferenceProfile.from_json(msgspec.json.encode(reference.profile).decode())


def test_features_answers_and_labels(adder: Conversion) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=1000)})
    frame["truth"] = frame["x"] + 2 + random.normal(scale=0.1, size=1000)
    frame.loc[7, "x"] = None
    profile = profile_of(made(adder, frame))
    (column,) = profile.columns
    assert (column.name, column.missing, profile.rows) == ("x", 1, 1000)
    assert profile.labels is not None
    assert profile.quality is not None
    assert profile.quality.task == "regression"
    # The same numbers as a server captures them, in float32, are no drift: not a single one changes its bin.
    later = pd.DataFrame({"x": frame["x"].astype("float32").sample(500, random_state=1)})
    assert not detect_drift(profile, later).drifted


def test_tensors(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["img", "axes"], ["sum"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(
        [node],
        "sum",
        [helper.make_tensor_value_info("img", TensorProto.FLOAT, [None, 2, 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None])],
        initializer=[axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert onnx.checker.check_model(model) is None
    tensor = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2, 2]}}
    conversion = Conversion(
        content=tmp_path,
        servable=Servable(
            kind="onnx",
            path="servable/model.onnx",
            feeds=(Feed(name="img", dtype="float32", tensor="", shape=(-1, 2, 2)),),
            outputs=(Output(name="sum", dtype="float32"),),
        ),
        signature={"inputs": [tensor], "outputs": [tensor], "params": None},
    )
    frame = pd.DataFrame(np.arange(50.0).reshape(10, 5))
    profile = profile_of(made(conversion, frame))
    assert [column.name for column in profile.columns] == [f"inputs_{at}" for at in range(4)]
    assert profile.predictions is not None
    assert profile.predictions.moments is not None
    assert profile.predictions.moments.min == 0 + 1 + 2 + 3
    assert profile.labels is not None


def test_private_columns_stay_out(adder: Conversion) -> None:
    frame = pd.DataFrame({"x": np.arange(300.0)})
    assert profile_of(made(adder, frame, exclude=("x",))).columns == ()
    assert profile_of(made(adder, frame, hash=("x",))).columns == ()


def test_of_many_rows_a_choice_that_is_the_same_each_time(adder: Conversion) -> None:
    frame = pd.DataFrame({"x": np.arange(MOST_ROWS + 500.0)})
    one, two = made(adder, frame), made(adder, frame)
    assert one == two
    assert profile_of(one).rows == MOST_ROWS
    assert str(MOST_ROWS + 500) in one.notes[0]


def test_why_there_is_none(adder: Conversion) -> None:
    nothing = make_reference(adder, None, CaptureSettings(), lambda _: None)
    assert nothing.profile is None
    assert "no rows" in nothing.notes[0]
    problem = Validation(frame=pd.DataFrame(), label=None, source="s", problem="it is gone")
    assert "it is gone" in make_reference(adder, problem, CaptureSettings(), lambda _: None).notes[0]
    assert "'x'" in made(adder, pd.DataFrame({"y": [1.0], "z": [2.0]})).notes[0]


def test_probabilities_go_by_the_names_of_their_classes(tmp_path: Path) -> None:
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    from mlflow_deploy.conversion.choose import make_servable
    from tests.integration.serving.bundles import save_sklearn

    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=600)})
    truth = np.where(frame["x"] + random.normal(size=600) > 0, "late", "early")
    model = LogisticRegression().fit(frame, truth)
    signature = infer_signature(frame, model.predict_proba(frame))
    folder = save_sklearn(model, tmp_path / "model", signature, pyfunc_predict_fn="predict_proba")
    (tmp_path / "work").mkdir()
    conversion = make_servable(folder, tmp_path / "work", format="onnx")
    assert conversion.servable.classes == ("early", "late")
    # Nothing was late: the labels alone do not tell whose probabilities these are.
    rows = frame.assign(truth=truth)[truth == "early"]
    validation = Validation(frame=rows, label="truth", source="test")
    reference = make_reference(conversion, validation, CaptureSettings(), lambda _: None)
    quality = profile_of(reference).quality
    assert quality is not None
    assert quality.classes == ("early", "late")
