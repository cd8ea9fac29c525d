"""What makes quick answers quick: batches only where they pay, few threads, buffers bound to the session."""

from __future__ import annotations

import math
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlflow_deploy.serving.backends.onnx import OnnxGraph
from mlflow_deploy.serving.crew import Crew
from mlflow_deploy.serving.http import App, Request, Response, Route
from mlflow_deploy.serving.worth import Company, Worth
from mlflow_deploy.settings import ServingSettings


class Trial:
    """Calls of a model that takes some time alone and some in a batch, and what stacking costs beside it."""

    def __init__(self, alone: float, in_batch: float, stacking: float, *, elsewhere: bool = False) -> None:
        self.alone, self.in_batch, self.stacking = alone, in_batch, stacking
        self.elsewhere = elsewhere
        self.spent = 0.0
        self.worth = Worth(lambda: self.spent)

    def calls(self, count: int) -> list[bool]:
        """Whether each of so many calls was offered for stacking."""
        answers = []
        for _ in range(count):
            answers.append(self.worth.stack(1))
            self.spent += 50e-6
            if answers[-1]:
                self.worth.stacked(1, 1, self.in_batch)
                self.spent += self.stacking + (0 if self.elsewhere else self.in_batch)
            else:
                self.worth.alone(1, self.alone)
                self.spent += 0 if self.elsewhere else self.alone
        return answers


@pytest.mark.parametrize(
    ("trial", "pays"),
    [
        (Trial(alone=100e-6, in_batch=20e-6, stacking=20e-6), True),
        (Trial(alone=10e-6, in_batch=8e-6, stacking=20e-6), False),
        # The model gains, and the threads lose more.
        (Trial(alone=60e-6, in_batch=20e-6, stacking=60e-6), False),
        # On a GPU, processor time says nothing.
        (Trial(alone=500e-6, in_batch=20e-6, stacking=20e-6, elsewhere=True), True),
    ],
)
def test_calls_are_stacked_only_when_a_trial_showed_that_it_pays(trial: Trial, pays: bool) -> None:
    answers = trial.calls(5000)
    assert set(answers[4000:]) == {pays}
    assert {True, False} == set(answers[:1500])


def test_few_calls_of_a_slow_model_are_computed_alone_for_a_trial() -> None:
    answers = Trial(alone=50e-3, in_batch=2e-3, stacking=20e-6).calls(1000)
    assert answers.count(False) < 80
    assert all(answers[200:])


def test_a_model_that_changes_its_cost_is_tried_again() -> None:
    trial = Trial(alone=6e-6, in_batch=5e-6, stacking=20e-6)
    trial.calls(4000)
    assert not trial.worth.pays
    trial.alone = 200e-6
    trial.calls(20_000)
    assert trial.worth.pays


def test_a_busy_machine_in_one_block_does_not_decide() -> None:
    trial = Trial(alone=100e-6, in_batch=20e-6, stacking=20e-6)
    trial.calls(100)
    trial.spent += 1.0
    trial.calls(3000)
    assert trial.worth.pays


def test_a_request_is_gone_with_its_answer() -> None:
    """Also where another thread may send it: the collector of cycles does not look at requests."""

    class Environ(dict[str, Any]):
        pass

    asked: list[Request] = []

    def later(request: Request) -> None:
        asked.append(request)

    worker: Any = SimpleNamespace(
        metrics=SimpleNamespace(answered=lambda *_: None),
        recorder=SimpleNamespace(on=False),
        capture=None,
        tracing=None,
        settings=ServingSettings(max_batch_size=8),
    )
    routes = {"/now": Route("GET", lambda _: Response(b"")), "/later": Route("GET", later)}
    app, sent = App(worker, routes), []
    granian: Any = SimpleNamespace(response_bytes=lambda *answer: sent.append(answer))
    for path in routes:
        environ = Environ(PATH_INFO=path, REQUEST_METHOD="GET")
        kept = weakref.ref(environ)
        app.answer(granian, environ)
        del environ
        if path == "/later":
            assert kept() is not None
            resume = asked.pop().resume
            assert resume is not None
            resume(Response(b""), None)
            del resume
        assert kept() is None, path
    assert [status for status, _, _ in sent] == [200, 200]


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
