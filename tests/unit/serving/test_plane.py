"""Admission, batching, deadlines, metrics and tokens, without a server around them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving import tensors
from mlflow_deploy.serving.admission import Admission
from mlflow_deploy.serving.auth import Guard, add_token
from mlflow_deploy.serving.backends.base import Call, TensorInfo
from mlflow_deploy.serving.batching import Batcher
from mlflow_deploy.serving.dataplane import DataPlane
from mlflow_deploy.serving.errors import DeadlineExceeded, Forbidden, InvalidValue, QueueFull, Unauthenticated
from mlflow_deploy.serving.exposition import exposition
from mlflow_deploy.serving.metrics import PROTOCOLS, SharedMetrics, WorkerMetrics
from mlflow_deploy.serving.protocols.grpc.messages import METHODS, messages
from mlflow_deploy.serving.worker import Clock, close
from mlflow_deploy.settings import ServingSettings


class Doubling:
    """A model that doubles numbers; 13 makes it raise, and it notes the size of each call."""

    signature = None
    providers = ("test",)
    inputs = (TensorInfo("x", "float32", (-1,)),)
    outputs = (TensorInfo("y", "float32", (-1,)),)

    def __init__(self, seconds: float = 0.0, *, interruptible: bool = True) -> None:
        self.seconds = seconds
        self.interruptible = interruptible
        self.sizes: list[int] = []

    def expire(self, now: float) -> None: ...

    def parse_json(self, body: bytes) -> Call:
        raise AssertionError

    parse_csv = parse_parquet = parse_json

    def parse_tensors(self, tensors: Mapping[str, Any], params: Mapping[str, Any]) -> Call:
        raise AssertionError

    def run(self, call: Call) -> list[int]:
        data = call.data
        time.sleep(self.seconds)
        self.sizes.append(len(data))
        if 13 in data:
            raise ValueError("13")
        return [2 * value for value in data]

    def stack(self, calls: Sequence[Call]) -> Call:
        return Call([value for call in calls for value in call.data], sum(call.rows for call in calls))

    def split(self, result: list[int], calls: Sequence[Call]) -> list[Any]:
        parts, at = [], 0
        for call in calls:
            parts.append(result[at : at + call.rows])
            at += call.rows
        return parts

    def to_json(self, result: Any) -> bytes:
        raise AssertionError

    to_tensors = to_json  # type: ignore[assignment]


def _together(*jobs: Any) -> list[Any]:
    """Run jobs in threads; returns their results or exceptions in order."""
    results: list[Any] = [None] * len(jobs)

    def run(at: int) -> None:
        try:
            results[at] = jobs[at]()
        except (ValueError, DeadlineExceeded) as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_admission_bounds_who_is_inside_and_who_waits() -> None:
    door = Admission(slots=1, queue_size=1, deadline_seconds=0.2)
    door.enter(time.perf_counter())
    assert door.active == 1
    waiter = threading.Thread(target=lambda: door.enter(time.perf_counter() + 10))
    waiter.start()
    while door.waiting == 0:
        time.sleep(0.001)
    with pytest.raises(QueueFull):
        door.enter(time.perf_counter())
    door.leave()
    waiter.join()
    with pytest.raises(DeadlineExceeded):
        door.enter(time.perf_counter())
    door.leave()
    assert (door.active, door.waiting) == (0, 0)


def test_waiting_calls_share_a_batch_and_get_their_own_results() -> None:
    model = Doubling(0.05)
    batcher = Batcher(model, max_rows=8, delay_seconds=0, runners=1)
    jobs = [lambda at=at: batcher.run(Call([at, at + 100], 2, ("k",)), 5) for at in range(7)]
    assert _together(*jobs) == [[2 * at, 2 * at + 200] for at in range(7)]
    assert len(model.sizes) <= 4
    assert max(model.sizes) <= 8


def test_a_bad_call_in_a_batch_fails_alone() -> None:
    batcher = Batcher(Doubling(0.02), max_rows=100, delay_seconds=0, runners=1)
    jobs = [lambda at=at: batcher.run(Call([at], 1, ("k",)), 5) for at in range(10, 16)]
    results = _together(*jobs)
    assert [type(result) for result in results].count(ValueError) == 1
    assert [result for result in results if isinstance(result, list)] == [[20], [22], [24], [28], [30]]


def test_calls_of_other_shapes_are_not_stacked() -> None:
    model = Doubling(0.03)
    batcher = Batcher(model, max_rows=100, delay_seconds=0, runners=1)
    jobs = [lambda at=at: batcher.run(Call([at], 1, (at % 2,)), 5) for at in range(6)]
    assert _together(*jobs) == [[2 * at] for at in range(6)]
    assert max(model.sizes) <= 3


@pytest.mark.alone
def test_a_leader_waits_for_others_only_as_long_as_it_may() -> None:
    model = Doubling()
    batcher = Batcher(model, max_rows=4, delay_seconds=0.2, runners=1)
    begun = time.perf_counter()
    assert batcher.run(Call([1], 1, ("k",)), 5) == [2]
    assert 0.15 < time.perf_counter() - begun < 1
    begun = time.perf_counter()
    _together(*[lambda at=at: batcher.run(Call([at], 1, ("k",)), 5) for at in range(4)])
    assert time.perf_counter() - begun < 0.19
    assert model.sizes == [1, 4]


def test_a_waiting_call_gives_up_at_its_deadline() -> None:
    batcher = Batcher(Doubling(0.5), max_rows=1, delay_seconds=0, runners=1)
    results = _together(*[lambda at=at: batcher.run(Call([at], 1, ("k",)), 0.1) for at in range(3)])
    assert [type(result) for result in results].count(DeadlineExceeded) == 2


@pytest.mark.alone
def test_an_uninterruptible_model_keeps_its_slot_but_not_its_caller() -> None:
    plane = DataPlane(Doubling(0.4, interruptible=False), ServingSettings(threads=1, deadline_seconds=0.1))
    begun = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        plane.predict(Call([1], 1), Clock())
    assert time.perf_counter() - begun < 0.3
    assert plane.admission.active == 1
    time.sleep(0.5)
    assert plane.admission.active == 0
    with pytest.raises(ValueError, match="13"):
        DataPlane(Doubling(interruptible=False), ServingSettings()).predict(Call([13], 1), Clock())


def test_a_late_result_is_a_504() -> None:
    plane = DataPlane(Doubling(0.2), ServingSettings(threads=1, deadline_seconds=0.1))
    with pytest.raises(DeadlineExceeded):
        plane.predict(Call([1], 1), Clock())


def test_metrics_of_all_workers() -> None:
    shared = SharedMetrics(2)
    first, second = WorkerMetrics(shared, 0), WorkerMetrics(shared, 1)
    call = Call(None, 3, begun=1.0, ended=1.004, batch=6)
    first.answered(0, 200, 0.999, 1.005, call)
    second.answered(0, 418, 1.0, 1.2, None)
    first.flush()
    second.flush()
    first.gauges(2, 1)
    text = exposition(shared, {"deployment": 'a"b'})[0].decode()
    for line in (
        'mlflow_deploy_requests_total{protocol="mlflow",status="200"} 1.0',
        'mlflow_deploy_requests_total{protocol="mlflow",status="500"} 1.0',
        'mlflow_deploy_request_seconds_bucket{le="0.01",protocol="mlflow"} 1.0',
        'mlflow_deploy_request_seconds_count{protocol="mlflow"} 2.0',
        'mlflow_deploy_model_seconds_bucket{le="0.005"} 1.0',
        "mlflow_deploy_batch_rows_sum 6.0",
        "mlflow_deploy_rows_total 3.0",
        "mlflow_deploy_requests_in_flight 2.0",
        'mlflow_deploy_model_info{deployment="a\\"b"} 1.0',
    ):
        assert line in text
    assert PROTOCOLS[0] == "mlflow"
    assert not shared.draining
    shared.drain()
    assert shared.draining


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = add_token(file, "a", ("predict",))
    boss = add_token(file, "b", ("admin",))
    assert file.stat().st_mode & 0o777 == 0o600
    guard = Guard(file)
    guard.check(f"Bearer {token}", "predict")
    guard.check(f"bearer {boss}", "metrics")
    for header in (None, "", token, f"Basic {token}", "Bearer ", f"Bearer {token}x"):
        with pytest.raises(Unauthenticated):
            guard.check(header, "predict")
    with pytest.raises(Forbidden):
        guard.check(f"Bearer {token}", "metrics")
    file.write_text("{")
    guard.check(f"Bearer {token}", "predict")  # a file half written locks nobody out
    file.unlink()
    guard.check(f"Bearer {token}", "predict")
    with pytest.raises(ConfigError):
        Guard(file)
    with pytest.raises(ConfigError, match="unknown scope"):
        add_token(file, "c", ("everything",))


def test_tensor_codec_round_trip() -> None:
    for name, dtype in tensors.DATATYPES.items():
        array = np.array(["a", "", "北"], object) if name == "BYTES" else np.array([0, 1, 1]).astype(dtype)
        assert tensors.datatype(array.dtype) == name
        again = tensors.from_binary("x", name, [3], tensors.to_binary(array))
        assert again.tolist() == array.tolist()
        if name != "FP16":
            assert (
                tensors.from_json("x", name, [3, 1], tensors.to_json(array)).ravel().tolist()
                == array.tolist()
            )


@pytest.mark.parametrize(
    ("name", "shape", "raw"),
    [("FP32", [2], b"1234567"), ("FP32", [-1], b""), ("BYTES", [1], b"\x05\0\0\0a"), ("BYTES", [1], b"\1\0"),
     ("BYTES", [2], b"\1\0\0\0a"), ("BYTES", [1], b"\1\0\0\0\xff"), ("FP32", [2**62, 4], b""),
     ("XX", [1], b"")],
)  # fmt: skip
def test_binary_that_lies(name: str, shape: list[int], raw: bytes) -> None:
    with pytest.raises(InvalidValue):
        tensors.from_binary("x", name, shape, raw)


def test_inputs_are_matched_by_name_and_kind() -> None:
    known = tensors.ModelInputs(Doubling())
    assert known.match([("x", np.array([1.0]))])["x"].dtype == np.float32
    assert known.match([("x", np.array([1]))])["x"].dtype == np.float32
    for name, array in (("z", np.array([1.0])), ("x", np.array(["a"], object)), ("x", np.array([1j]))):
        with pytest.raises(InvalidValue):
            known.match([(name, array)])
    with pytest.raises(InvalidValue, match="twice"):
        known.match([("x", np.array([1.0])), ("x", np.array([1.0]))])


def test_grpc_messages_are_those_of_the_protocol() -> None:
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    ours = messages()
    for name in [f"{method}{kind}" for method in METHODS for kind in ("Request", "Response")]:
        theirs = getattr(service, name).DESCRIPTOR
        described = {(f.name, f.number, f.type) for f in ours[name].DESCRIPTOR.fields}
        assert described == {(f.name, f.number, f.type) for f in theirs.fields}
    request = ours["ModelInferRequest"](model_name="m", raw_input_contents=[b"1"])
    request.parameters["a"].int64_param = 7
    added = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    added.contents.fp32_contents.extend([1.0, 2.0])
    again = service.ModelInferRequest.FromString(request.SerializeToString())
    assert again.parameters["a"].int64_param == 7
    assert list(again.inputs[0].contents.fp32_contents) == [1.0, 2.0]


def test_close_compares_within_float32() -> None:
    assert close([{"a": 1.0}], [{"a": 1.00001}])
    assert close(float("nan"), float("nan"))
    assert not close([1], [1, 2])
    assert not close({"a": 1}, {"b": 1})
    assert not close(True, 2)
    assert not close("a", "b")


def test_collected_calls_are_answered_without_a_thread_that_waits() -> None:
    settings = ServingSettings(threads=1, max_batch_size=4, max_batch_delay_ms=10_000, deadline_seconds=0.1)
    plane = DataPlane(Doubling(), settings)
    answers: dict[int, tuple[Any, Exception | None]] = {}

    def collect(at: int, value: int) -> bool:
        call = Call([value], 1, ("k",))
        return plane.collect(call, Clock(), str, lambda *got: answers.__setitem__(at, got))

    # A trial begins with calls that are computed alone.
    while not collect(0, 1):
        plane.predict(Call([1], 1), Clock())
    for at, value in enumerate((2, 13, 3), start=1):
        assert collect(at, value)
    assert [answers[at][0] for at in range(4)] == ["[2]", "[4]", None, "[6]"]
    assert isinstance(answers[2][1], ValueError)
    assert collect(4, 5)
    time.sleep(0.15)
    plane.tick()
    assert isinstance(answers[4][1], DeadlineExceeded)
    assert plane.admission.active == 0
