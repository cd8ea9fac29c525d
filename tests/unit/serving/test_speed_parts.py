"""What makes quick answers quick: batches only where they pay, few threads, buffers bound to the session."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy.serving.backends.onnx import OnnxGraph
from mlflow_deploy.serving.crew import Crew
from mlflow_deploy.serving.worth import Company, Worth


@pytest.mark.parametrize(("alone", "row_in_batch", "pays"), [(100e-6, 20e-6, True), (10e-6, 8e-6, False)])
def test_calls_are_stacked_only_when_a_trial_showed_that_it_pays(
    alone: float, row_in_batch: float, pays: bool
) -> None:
    worth = Worth()
    answers = []
    for _ in range(1000):
        answers.append(worth.stack(1))
        if answers[-1]:
            worth.stacked(8, 8 * row_in_batch)
        else:
            worth.alone(1, alone)
    assert set(answers[200:]) == {pays}
    assert {True, False} == set(answers[:100])


def test_a_model_that_changes_its_cost_is_tried_again() -> None:
    worth = Worth()
    last = []
    for at in range(20_000):
        dear = at > 3000
        if worth.stack(1):
            worth.stacked(8, 8 * 5e-6)
        else:
            worth.alone(1, 200e-6 if dear else 6e-6)
        last.append(worth.pays)
    assert not last[2000]
    assert last[-1]


def test_nobody_waits_for_callers_that_do_not_exist() -> None:
    company = Company(32)
    assert company.enough == 32
    seen = []
    for _ in range(40):
        company.gathered(5)
        seen.append(company.enough)
    assert seen[-1] == 5
    assert 32 in seen[10:]


@pytest.mark.alone
def test_a_thread_rests_only_while_enough_others_answer() -> None:
    crew = Crew(1)
    crew.finished(100.0)
    took: list[float] = []

    def other(now: float) -> None:
        begun = time.perf_counter()
        crew.finished(now)
        took.append(time.perf_counter() - begun)

    for now in (100.0, 101.0):
        thread = threading.Thread(target=other, args=(now,))
        thread.start()
        thread.join()
    assert took[0] > 0.1
    assert took[1] < 0.1


def _session(tmp_path: Path, *nodes: Any, outputs: list[Any]) -> Any:
    import onnx
    import onnxruntime as ort

    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])
    graph = onnx.helper.make_graph(list(nodes), "g", [x], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])


def test_buffers_give_each_call_its_own_numbers(tmp_path: Path) -> None:
    import onnx

    double = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = OnnxGraph(_session(tmp_path, double, outputs=[out]), ["y"])
    kept: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for rows in (1, 2, 1, 3, 1) * 40:
            x = rng.normal(size=(rows, 2)).astype("float32")
            kept.append((x, graph.run({"x": x}, math.inf)[0]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 800
    assert all(np.array_equal(y, x + x) for x, y in kept)


def test_an_output_whose_shape_depends_on_the_numbers_is_not_bound(tmp_path: Path) -> None:
    import onnx

    nonzero = onnx.helper.make_node("NonZero", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2, "k"])
    graph = OnnxGraph(_session(tmp_path, nonzero, outputs=[out]), ["y"])
    for numbers in ([[1, 0]], [[1, 1]], [[0, 1]], [[0, 0]]) * 2:
        x = np.array(numbers, "float32")
        assert np.array_equal(graph.run({"x": x}, math.inf)[0], np.array(np.nonzero(x)))


def test_a_run_past_its_time_spoils_no_later_one(tmp_path: Path) -> None:
    import onnx

    double = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = OnnxGraph(_session(tmp_path, double, outputs=[out]), ["y"])
    x = np.ones((1, 2), "float32")
    graph.run({"x": x}, math.inf)
    assert graph._bound is not None
    (slot,) = graph._bound._slots
    slot.expires = 1.0  # as if the look at the clock came just before the run was over
    graph.expire(2.0)
    assert slot.spoiled
    for _ in range(3):
        assert graph.run({"x": x}, math.inf)[0].tolist() == [[2.0, 2.0]]
    assert slot not in graph._bound._slots
