"""The ONNX flavor on graphs that are given: inputs, outputs, options and weights beside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.models import infer_signature
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy.errors import ConfigError, ConversionError, InvalidInput, UnknownSetting
from mlflow_deploy.flavors import onnx as flavor

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def model_of(
    *nodes: Any, inputs: list[Any], outputs: list[Any], initializers: dict[str, Any] | None = None
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "g",
        inputs,
        outputs,
        initializer=[numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def matrix() -> Any:
    """x[rows, 4] @ weights: an answer of shape [rows, 3]."""
    return model_of(
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        inputs=[value("x", [None, 4])],
        outputs=[value("y", [None, 3])],
        initializers={"w": WEIGHTS},
    )


@pytest.fixture
def two_outputs() -> Any:
    """A label of shape [rows] and probabilities of shape [rows, 3], as classifiers give."""
    return model_of(
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        inputs=[value("x", [None, 4])],
        outputs=[value("label", [None], TensorProto.INT64), value("probabilities", [None, 3])],
        initializers={"w": WEIGHTS - 5},
    )


ROWS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 1], [0, 0, 2, 0], [1, 1, 1, 1]], dtype=np.float32)


def test_answer_keeps_its_shape(matrix: Any, tmp_path: Path) -> None:
    """MLflow's own flavor gives (15, 1) here."""
    flavor.save_model(matrix, tmp_path / "m", input_example=ROWS)
    answer = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(ROWS)
    assert answer.shape == (5, 3)
    np.testing.assert_array_equal(answer, ROWS @ WEIGHTS)
    frame = pd.DataFrame(ROWS, columns=list("abcd"))
    flavor.save_model(matrix, tmp_path / "f", input_example=frame)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "f"))
    np.testing.assert_array_equal(loaded.predict(frame), ROWS @ WEIGHTS)
    # Columns are found by name, not by place.
    np.testing.assert_array_equal(loaded.predict(frame[list("dcba")]), ROWS @ WEIGHTS)


def test_label_and_probabilities_from_a_dataframe(two_outputs: Any, tmp_path: Path) -> None:
    """MLflow's own flavor raises "All arrays must be of the same length" here."""
    frame = pd.DataFrame(ROWS, columns=list("abcd"))
    flavor.save_model(two_outputs, tmp_path / "m", input_example=frame)
    answer = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(frame)
    assert set(answer) == {"label", "probabilities"}
    assert answer["label"].shape == (5,)
    assert answer["label"].dtype == np.int64
    assert answer["probabilities"].shape == (5, 3)
    signature = mlflow.models.get_model_info(str(tmp_path / "m")).signature
    assert signature is not None
    assert signature.outputs.input_names() == ["label", "probabilities"]


def test_columns_of_several_types_go_to_inputs_of_their_names(tmp_path: Path) -> None:
    model = model_of(
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["size", "number"], ["sum"]),
        helper.make_node("Identity", ["city"], ["where"]),
        inputs=[
            value("size", [None, 1]),
            value("count", [None, 1], TensorProto.INT64),
            value("city", [None, 1], TensorProto.STRING),
        ],
        outputs=[value("sum", [None, 1]), value("where", [None, 1], TensorProto.STRING)],
    )
    frame = pd.DataFrame({"city": ["Köln", "Ulm"], "count": [1, 2], "size": [0.5, 1.5]})
    flavor.save_model(model, tmp_path / "m", input_example=frame)
    frame.loc[1, "city"] = None
    answer = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(frame)
    np.testing.assert_array_equal(answer["sum"], [[1.5], [3.5]])
    assert answer["where"].tolist() == [["Köln"], ["nan"]]


def test_several_tensors_by_name(tmp_path: Path) -> None:
    model = model_of(
        helper.make_node("Add", ["a", "b"], ["sum"]),
        inputs=[value("a", [None, 2]), value("b", [None, 2])],
        outputs=[value("sum", [None, 2])],
    )
    example = {"a": np.ones((3, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
    flavor.save_model(model, tmp_path / "m", input_example=example)
    np.testing.assert_array_equal(
        mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(example), np.ones((3, 2))
    )


def test_without_example_and_with_a_signature(matrix: Any, tmp_path: Path) -> None:
    flavor.save_model(matrix, tmp_path / "bare")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "bare"))
    assert loaded.metadata.signature is None
    np.testing.assert_array_equal(loaded.predict(ROWS), ROWS @ WEIGHTS)
    signature = infer_signature(ROWS, ROWS @ WEIGHTS)
    flavor.save_model(matrix, tmp_path / "signed", signature=signature)
    assert mlflow.pyfunc.load_model(str(tmp_path / "signed")).metadata.signature == signature


def test_bytes_paths_and_weights_beside_the_graph(matrix: Any, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "net.onnx"
    whole = matrix.SerializeToString()
    # This takes the weights out of the object, too.
    onnx.save_model(matrix, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    for name, model in {"bytes": whole, "path": path, "text": str(path)}.items():
        flavor.save_model(model, tmp_path / name, input_example=ROWS)
        np.testing.assert_array_equal(
            mlflow.pyfunc.load_model(str(tmp_path / name)).predict(ROWS), ROWS @ WEIGHTS
        )
    assert (tmp_path / "path/forms/onnx/servable/net.bin").read_bytes() == WEIGHTS.tobytes()


def test_weights_outside_the_folder_are_refused(matrix: Any, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 48)
    onnx.save_model(
        matrix, tmp_path / "given" / "net.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    graph = onnx.load(tmp_path / "given" / "net.onnx", load_external_data=False)
    graph.graph.initializer[0].external_data[0].value = "../secret"
    (tmp_path / "given" / "net.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ConversionError, match="outside its folder"):
        flavor.save_model(tmp_path / "given" / "net.onnx", tmp_path / "m", input_example=ROWS)


def test_session_options_are_stored_checked_and_applied(matrix: Any, tmp_path: Path) -> None:
    options: flavor.SessionOptions = {
        "graph_optimization_level": "basic",
        "disabled_optimizers": ["SkipLayerNormFusion"],
        "config": {"session.disable_prepacking": "1"},
    }
    flavor.save_model(matrix, tmp_path / "m", input_example=ROWS, session_options=options)
    session = flavor.load_model(tmp_path / "m")
    given = session.get_session_options()
    assert given.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert given.get_session_config_entry("session.disable_prepacking") == "1"
    assert given.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(UnknownSetting, match="graph_optimisation_level"):
        flavor.save_model(matrix, tmp_path / "n", session_options={"graph_optimisation_level": "all"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ConfigError, match="'most'"):
        flavor.save_model(matrix, tmp_path / "n", session_options={"graph_optimization_level": "most"})


def test_example_that_does_not_fit_is_refused(matrix: Any, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0], "b": [2.0]})
    with pytest.raises(ConversionError, match="takes x; the signature has a, b"):
        flavor.save_model(matrix, tmp_path / "m", input_example=frame)
    with pytest.raises(InvalidInput, match="Got: 5 Expected: 4"):
        flavor.save_model(matrix, tmp_path / "n", input_example=np.ones((2, 5), np.float32))
    # A tensor that the graph does not take is left out.
    more = {"x": np.ones((1, 4), np.float32), "z": np.ones((1, 4), np.float32)}
    flavor.save_model(matrix, tmp_path / "o", input_example=more)


def test_graph_that_cannot_be_loaded_says_why(matrix: Any, tmp_path: Path) -> None:
    matrix.ir_version = 99
    with pytest.raises(ConversionError, match="ONNX Runtime cannot load"):
        flavor.save_model(matrix, tmp_path / "m", input_example=ROWS)


def test_zipmap_output_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(ROWS, [0, 1, 0, 1, 1])
    with pytest.raises(ConversionError, match="zipmap=False"):
        flavor.save_model(to_onnx(fitted, ROWS, target_opset=20), tmp_path / "m", input_example=ROWS)
