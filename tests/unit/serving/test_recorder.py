"""The recorder: nothing when off, every answer when on, and what it cannot keep is counted."""

from __future__ import annotations

import io
import multiprocessing
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mlflow_deploy.rollout.answers import answer_rows, shown_input
from mlflow_deploy.serving import recorder as ring
from mlflow_deploy.serving.auth import Guard, add_token
from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.serving.http import App
from mlflow_deploy.serving.metrics import SharedMetrics
from mlflow_deploy.serving.protocols.grpc.messages import messages
from mlflow_deploy.serving.protocols.grpc.server import Service
from mlflow_deploy.serving.recorder import Order, Record, Recorder, Reply, SharedRecorder
from mlflow_deploy.serving.server import make_app
from mlflow_deploy.serving.worker import Launch, Worker
from tests.bundles import adder_bundle

SECRET = "the deployment's own"
BODY = b'{"dataframe_split": {"columns": ["x"], "data": [[1.5]]}}'


def record(request_id: str, answer: bytes = b"{}") -> Record:
    return Record(0, request_id, "/invocations", 200, 0.001, 7, b"", "", answer, "")


def writer(shared: SharedRecorder, worker: int = 0) -> Recorder:
    made = Recorder(shared, worker)
    made.refresh()
    return made


def test_reader_gets_every_record_once_from_when_it_came() -> None:
    shared = SharedRecorder(2)
    shared.switch(1.0)
    writers = [writer(shared, worker) for worker in (0, 1)]
    writers[0].put(record("before the reader"))
    reply = shared.drain(Order(1.0))
    assert reply.records == []
    for at in range(6):
        writers[at % 2].put(record(f"id-{at}"))
    reply = shared.drain(Order(1.0, {reply.boot: reply.after, "another server": [(1, 1)]}))
    assert sorted(each.id for each in reply.records) == [f"id-{at}" for at in range(6)]
    reply = shared.drain(Order(1.0, {reply.boot: reply.after}))
    assert (reply.records, reply.lost) == ([], 0)


def test_what_is_overwritten_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedRecorder(1)
    reply = shared.drain(Order(1.0))
    one = writer(shared)
    answer = b"x" * ring.MAX_ANSWER_BYTES
    count = 3 * ring.RING_BYTES // len(answer)
    for at in range(count):
        one.put(record(f"id-{at}", answer))
    one.put(record("too large", answer + b"x"))
    found: list[Record] = []
    lost = 0
    while True:
        reply = shared.drain(Order(1.0, {reply.boot: reply.after}))
        if not reply.records:
            break
        found += reply.records
        lost += reply.lost
    assert [each.number for each in found] == list(range(count - len(found), count))
    assert lost == count - len(found) > count / 2
    assert reply.oversized == 1


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_reader_in_another_process_never_sees_half_a_record() -> None:
    shared = SharedRecorder(1)
    begun = shared.drain(Order(1.0))
    context = multiprocessing.get_context("fork")
    count = 4000

    def write() -> None:
        one = writer(shared)
        for at in range(count):
            one.put(record(f"id-{at}", bytes([at % 256]) * (at % 7001)))

    process = context.Process(target=write)
    process.start()
    reply, seen, lost = begun, 0, 0
    while seen + lost < count:
        alive = process.is_alive()
        reply = shared.drain(Order(1.0, {reply.boot: reply.after}))
        for each in reply.records:
            assert each.answer == bytes([each.number % 256]) * (each.number % 7001)
        seen, lost = seen + len(reply.records), lost + reply.lost
        assert alive or reply.records, "the writer is done and nothing more comes"
    process.join()
    assert seen > 0


def test_every_server_takes_the_same_share_of_the_ids() -> None:
    recorders = []
    for _ in range(2):
        shared = SharedRecorder(1)
        shared.switch(0.25)
        recorders.append(writer(shared))
    taken = [[at for at in range(4000) if each.takes(f"id-{at}")] for each in recorders]
    assert taken[0] == taken[1]
    assert 800 < len(taken[0]) < 1200


def test_it_switches_itself_off_and_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "LEASE_SECONDS", 0.05)
    shared = SharedRecorder(1)
    one = writer(shared)
    assert not one.on
    reply = shared.drain(Order(1.0))
    one.refresh()
    assert one.on
    one.put(record("id", b"x" * 100_000))
    time.sleep(0.06)
    one.refresh()
    assert not one.on
    assert not any(shared.read_at(0, 8192, 50_000))
    monkeypatch.undo()
    assert shared.drain(Order(1.0, {reply.boot: reply.after})).records == []
    one.refresh()
    one.put(record("after"))
    reply = shared.drain(Order(1.0, {reply.boot: reply.after}))
    assert [each.id for each in reply.records] == ["after"]
    assert reply.lost == 1


# --- behind HTTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("server")
    bundle = adder_bundle(folder / "store", folder, 2.0)
    config = parse_config({"control": SECRET})
    made = Worker(Launch(bundle, config, SharedMetrics(1), SharedRecorder(1)), 0)
    made.load()
    yield made
    made.recorder.shared.switch(0.0)


def call(app: App, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    status: list[int] = []
    environ: dict[str, Any] = {
        "PATH_INFO": path,
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **headers,
    }
    parts = app(environ, lambda line, _: status.append(int(line[:3])))
    return status[0], b"".join(parts)


def drain(app: App, order: Order, token: str = SECRET) -> Reply:
    status, body = call(
        app, "/admin/recorder", msgspec.json.encode(order), HTTP_AUTHORIZATION=f"Bearer {token}"
    )
    assert status == 200, body
    return msgspec.msgpack.decode(body, type=Reply)


def test_answers_are_recorded_as_they_were_given(worker: Worker) -> None:
    app = make_app(worker)
    reply = drain(app, Order(1.0))
    status, answer = call(app, "/invocations", BODY, HTTP_X_REQUEST_ID="mine")
    assert status == 200
    packed = zlib.compress(BODY)
    assert (
        call(app, "/invocations", packed, HTTP_CONTENT_ENCODING="deflate", HTTP_X_REQUEST_ID="small")[0]
        == 200
    )
    assert call(app, "/invocations", b"{", HTTP_X_REQUEST_ID="broken")[0] == 400
    call(app, "/ping", b"")
    good, small, bad = drain(app, Order(0.0, {reply.boot: reply.after})).records
    assert (good.id, good.path, good.status, good.request) == ("mine", "/invocations", 200, BODY)
    assert (good.answer, good.request_type) == (answer, "application/json identity")
    assert good.digest == zlib.crc32(BODY)
    assert 0 < good.seconds < 1
    assert (small.request, small.request_type) == (packed, "application/json deflate")
    assert (bad.id, bad.status) == ("broken", 400)


def test_large_requests_are_known_by_their_digest_only(worker: Worker) -> None:
    app = make_app(worker)
    reply = drain(app, Order(1.0))
    rows = [[1.5]] * (ring.MAX_REQUEST_BYTES // 4)
    body = msgspec.json.encode({"dataframe_split": {"columns": ["x"], "data": rows}})
    assert call(app, "/invocations", body)[0] == 200
    (found,) = drain(app, Order(0.0, {reply.boot: reply.after})).records
    assert (found.request, found.digest) == (b"", zlib.crc32(body))
    assert len(msgspec.json.decode(found.answer)["predictions"]) == len(rows)


def test_nobody_else_learns_of_it(worker: Worker, tmp_path: Path) -> None:
    order = msgspec.json.encode(Order(1.0))
    app = make_app(worker)
    for header in ("", "Bearer ", "Bearer guessed", SECRET):
        assert call(app, "/admin/recorder", order, HTTP_AUTHORIZATION=header)[0] == 404
    assert call(app, "/admin/recorder", b"{}", HTTP_AUTHORIZATION=f"Bearer {SECRET}")[0] == 400
    path = tmp_path / "tokens.json"
    admin, reader = add_token(path, "admin", ("admin",)), add_token(path, "reader", ("predict", "metrics"))
    guarded = make_app(worker, Guard(path))
    assert call(guarded, "/admin/recorder", order)[0] == 401
    assert call(guarded, "/admin/recorder", order, HTTP_AUTHORIZATION=f"Bearer {reader}")[0] == 403
    drain(guarded, Order(0.0), token=admin)
    drain(guarded, Order(0.0))


def test_a_server_without_a_secret_tells_nobody(worker: Worker) -> None:
    plain = Worker(Launch(worker.bundle, parse_config({}), SharedMetrics(1), SharedRecorder(1)), 0)
    order = msgspec.json.encode(Order(1.0))
    assert call(make_app(plain), "/admin/recorder", order, HTTP_AUTHORIZATION="Bearer ")[0] == 404


class Context:
    """What grpcio hands to a call, as far as it is looked at."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("x-request-id", self._request_id)]


def test_grpc_calls_are_recorded_in_the_form_of_http(worker: Worker) -> None:
    new = messages()
    call_model = Service(worker, None).answering("ModelInfer")
    name = worker.bundle.manifest.model.name or "model"
    request = new["ModelInferRequest"](model_name=Service(worker, None)._names[0] or name)
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[2, 1])
    tensor.contents.fp64_contents.extend([1.5, 2.5])
    reply = worker.recorder.shared.drain(Order(1.0))
    worker.recorder.refresh()
    call_model(request, Context("typed"))
    raw = new["ModelInferRequest"](model_name=request.model_name)
    raw.inputs.add(name="x", datatype="FP64", shape=[2, 1])
    raw.raw_input_contents.append(np.array([1.5, 2.5]).tobytes())
    call_model(raw, Context("raw"))
    typed, binary = worker.recorder.shared.drain(Order(0.0, {reply.boot: reply.after})).records
    assert [each.id for each in (typed, binary)] == ["typed", "raw"]
    assert answer_rows(typed) == answer_rows(binary) == [(3.5,), (4.5,)]
    assert shown_input(typed, 1) == shown_input(binary, 1) == '{"x": [2.5]}'
