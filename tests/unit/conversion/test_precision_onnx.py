"""ONNX graphs in lower precision: what is quantised, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy.bundle import Feed, Output, Servable
from mlflow_deploy.conversion import precision_onnx
from mlflow_deploy.conversion.precision_onnx import OnnxSource

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(256, 32)).astype(np.float32)
SERVABLE = Servable(
    kind="onnx",
    path="servable/model.onnx",
    feeds=(Feed(name="x", dtype="float32", tensor="", shape=(-1, 32)),),
    outputs=(Output(name="y", dtype="float32"),),
)


def write(folder: Path, *, convolution: bool = False, trees: bool = False) -> Path:
    """A small graph: two dense layers, before them on request a convolution; or one without weights."""
    weights = {
        "w1": RNG.normal(size=(32, 64)), "w2": RNG.normal(size=(64, 3)), "k": RNG.normal(size=(1, 1, 3)),
        "three": np.array([0, 1, 32]), "two": np.array([0, 32]),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    if convolution:
        nodes[0].input[0] = "flat"
        nodes = [
            helper.make_node("Reshape", ["x", "three"], ["image"]),
            helper.make_node("Conv", ["image", "k"], ["c"], pads=[1, 1]),
            helper.make_node("Reshape", ["c", "two"], ["flat"]),
            *nodes,
        ]
    if trees:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
    used = {name for node in nodes for name in node.input}
    initializers = [
        numpy_helper.from_array(array.astype(np.int64 if array.dtype.kind == "i" else np.float32), name)
        for name, array in weights.items()
        if name in used
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = folder / "plain.onnx"
    onnx.save(model, str(path))
    return path


def answer(path: Path, rows: np.ndarray = ROWS) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": rows})[0]


def source(path: Path, batches: int = 8) -> OnnxSource:
    feeds = [{"x": ROWS[at * 32 : (at + 1) * 32]} for at in range(batches)]
    return OnnxSource(SERVABLE, path, feeds)


def test_int8_answers_nearly_the_same_from_a_third_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path)
    expected = answer(path)
    labels = []
    for candidate in precision_onnx.candidates(source(path), "int8"):
        made = candidate.build(tmp_path)
        labels.append(candidate.label)
        assert made.precision == "int8"
        error = np.abs(answer(tmp_path / "model.onnx") - expected).max()
        assert 0 < error < 0.05 * np.abs(expected).max(), candidate.label
        stored = onnx.load(str(tmp_path / "model.onnx")).graph.initializer
        assert {item.data_type for item in stored if len(item.dims) == 2} == {TensorProto.INT8}
    assert labels == ["int8 static", "int8 static per tensor", "int8 dynamic"]


def test_weights_keep_seven_bits_so_that_products_never_overflow(tmp_path: Path) -> None:
    for candidate in precision_onnx.candidates(source(write(tmp_path)), "int8"):
        candidate.build(tmp_path)
        for item in onnx.load(str(tmp_path / "model.onnx")).graph.initializer:
            if item.data_type == TensorProto.INT8 and len(item.dims) == 2:
                assert np.abs(numpy_helper.to_array(item).astype(int)).max() <= 64


def test_the_answer_itself_is_not_rounded_to_256_values(tmp_path: Path) -> None:
    static = next(iter(precision_onnx.candidates(source(write(tmp_path)), "int8")))
    static.build(tmp_path)
    many = RNG.normal(size=(4000, 32)).astype(np.float32)
    assert len(np.unique(answer(tmp_path / "model.onnx", many))) > 2000


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path)
    for precision in ("int8", "fp16"):
        for candidate in precision_onnx.candidates(source(path), precision):
            candidate.build(tmp_path)
            first = (tmp_path / "model.onnx").read_bytes()
            candidate.build(tmp_path)
            assert (tmp_path / "model.onnx").read_bytes() == first


def test_dynamic_scales_are_never_used_on_convolutions(tmp_path: Path) -> None:
    labels = [
        item.label for item in precision_onnx.candidates(source(write(tmp_path, convolution=True)), "int8")
    ]
    assert labels == ["int8 static"]


def test_dynamic_scales_depend_on_the_batch_so_requests_are_not_mixed(tmp_path: Path) -> None:
    static, _, dynamic = precision_onnx.candidates(source(write(tmp_path)), "int8")
    assert static.build(tmp_path).batchable
    assert not dynamic.build(tmp_path).batchable
    loud = np.concatenate([ROWS[:1], 1000 * ROWS[1:2]])
    alone, beside = answer(tmp_path / "model.onnx", ROWS[:1]), answer(tmp_path / "model.onnx", loud)[:1]
    assert np.abs(alone - beside).max() > 0.1


def test_without_calibration_rows_only_dynamic_is_left(tmp_path: Path) -> None:
    assert [item.label for item in precision_onnx.candidates(source(write(tmp_path), 0), "int8")] == [
        "int8 dynamic"
    ]


def test_fp16_halves_the_weights_and_keeps_the_inputs(tmp_path: Path) -> None:
    path = write(tmp_path)
    (candidate,) = precision_onnx.candidates(source(path), "fp16")
    assert candidate.build(tmp_path).precision == "fp16"
    assert np.abs(answer(tmp_path / "model.onnx") - answer(path)).max() < 0.05
    assert (tmp_path / "model.onnx").stat().st_size < 0.6 * path.stat().st_size


@pytest.mark.parametrize(("precision", "word"), [("int8", "matrix product"), ("fp16", "16 bits")])
def test_a_graph_without_weights_is_refused(tmp_path: Path, precision: str, word: str) -> None:
    assert word in precision_onnx.refuse(write(tmp_path, trees=True), precision)
    assert precision_onnx.refuse(write(tmp_path), precision) == ""
