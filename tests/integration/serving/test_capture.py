"""Capture on real servers: what is kept, what a kill loses, and that requests never notice."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.serving.capture_records import RowRecords
from mlflow_deploy.serving.rows import RowPacker
from tests.bundles import adder_bundle
from tests.integration.serving.running import Running, running, wait_ready, workers
from tests.integration.serving.zoo import Animal
from tests.waiting import eventually

QUICK = {"flush_seconds": 0.05}


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Adds two to column `x`."""
    folder = tmp_path_factory.mktemp("adder")
    return adder_bundle(folder / "store", folder / "work", 2.0)


def ask(client: httpx.Client, *values: float, id: str = "") -> httpx.Response:
    body = {"dataframe_split": {"columns": ["x"], "data": [[value] for value in values]}}
    return client.post("/invocations", json=body, headers={"x-request-id": id} if id else {})


def everything(store: CaptureStore) -> pa.Table:
    now = datetime.now(UTC)
    return store.read(3, now - timedelta(hours=1), now + timedelta(hours=1))


def settled(store: CaptureStore, rows: int) -> pa.Table:
    """The rows, when there are so many."""
    eventually(lambda: everything(store).num_rows >= rows)
    table = everything(store)
    assert table.num_rows == rows
    return table


def metric(server: Running, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_every_request_with_its_answer_status_and_latency(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    with running(adder.path, tmp_path, data=store.folder, capture=QUICK) as server:
        with server.client() as client:
            assert ask(client, 1.0, 2.5, id="first").status_code == 200
            refused = client.post("/invocations", content=b"{", headers={"content-type": "application/json"})
            tensor = {"name": "x", "datatype": "FP64", "shape": [1], "data": [7]}
            over_oip = client.post("/v2/models/toy/infer", json={"inputs": [tensor]})
            assert (refused.status_code, over_oip.status_code) == (400, 200)
            client.get("/ping")
        table = settled(store, 4)
        assert metric(server, "mlflow_deploy_captured_requests_total") == 3
    rows = {(row["_request_id"], row["_row"]): row for row in table.to_pylist()}
    assert [rows["first", at][name] for at in (0, 1) for name in ("x", "prediction")] == [1.0, 3.0, 2.5, 4.5]
    failed = rows[refused.headers["x-request-id"], 0]
    assert (failed["_status"], failed["x"], failed["prediction"]) == (400, None, None)
    assert rows[over_oip.headers["x-request-id"], 0]["prediction"] == 9.0
    assert all(0 < row["_latency_ms"] < 10_000 for row in rows.values())
    assert all(abs(row["_time"] - datetime.now(UTC)) < timedelta(minutes=1) for row in rows.values())
    # A server that ended by itself lost nothing, and its file is whole.
    report = store.seal(3)
    assert (report.sealed, report.rows, report.truncated, report.open) == (1, 4, 0, 0)
    assert everything(store).equals(table)


def test_requests_that_come_without_an_id_have_the_short_form(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    with running(adder.path, tmp_path, data=store.folder, capture=QUICK) as server:
        with server.client() as client:
            made = ask(client, 1.0).headers["x-request-id"]
        assert settled(store, 1).column("_request_id").to_pylist() == [made]
    packed = RowPacker("x", "float64", 1)([[1.0]])
    assert RowRecords().pack(made, 0.0, 0.0, packed, [np.array([3.0])]) is not None


def test_kill_9_loses_at_most_what_waited(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    answered: set[float] = set()

    with running(adder.path, tmp_path, workers=2, data=store.folder, capture=QUICK) as server:

        def send(first: int) -> None:
            with server.client() as client:
                for number in range(first, first + 100_000):
                    try:
                        if ask(client, float(number)).status_code == 200:
                            answered.add(float(number))
                    except httpx.TransportError:
                        return

        with ThreadPoolExecutor(4) as pool:
            # Connections spread over the workers, and break with them.
            senders = [pool.submit(send, first * 1_000_000) for first in range(4)]
            eventually(lambda: len(answered) > 200)
            time.sleep(0.5)
            for pid in workers(server):
                os.kill(pid, signal.SIGKILL)
            for sender in senders:
                sender.result()
        wait_ready(server)
        # Sealed while the workers that were started again go on.
        with server.client() as client:
            assert ask(client, -1.0).status_code == 200
            report = store.seal(3)
            table = settled(store, report.rows + 1)
    # One that was asked while it still loaded refused, which is captured without features.
    values = [value for value in table.column("x").to_pylist() if value is not None]
    captured = set(values)
    assert report.rows > 10
    assert len(values) == len(captured)
    # A request that was captured was answered, but for those whose answers the kill cut off.
    assert len(captured - answered - {-1.0}) <= 4
    for first in range(4):
        mine = sorted(value for value in answered if first * 1_000_000 <= value < (first + 1) * 1_000_000)
        # A connection stays with its worker: what that lost is the end of what it answered.
        kept = [value in captured for value in mine]
        assert kept == sorted(kept, reverse=True)


def test_all_workers_write_streams_of_their_own(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    capture = {**QUICK, "file_bytes": 8192}
    with running(adder.path, tmp_path, workers=3, data=store.folder, capture=capture) as server:
        # A connection stays with its worker.
        for _ in range(30):
            with server.client() as client:
                for number in range(10):
                    ask(client, float(number))
        table = settled(store, 300)
        during = store.seal(3)
        assert everything(store).num_rows == 300
        assert during.open <= 3
    assert set(table.column("x").to_pylist()) == {float(number) for number in range(10)}
    store.seal(3)
    assert everything(store).num_rows == 300
    assert len({path.name.split("-")[1] for path in store.revision_folder(3).glob("*.parquet")}) > 1


@pytest.mark.parametrize("broken", ["read-only", "full"])
def test_requests_do_not_notice_that_nothing_can_be_written(
    adder: Bundle, tmp_path: Path, broken: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    prefix: tuple[str, ...] = ()
    if broken == "read-only":
        # Not by its mode, which root may ignore.
        (data / "capture").write_text("a file where a folder should be")
    else:
        prefix = ("prlimit", "--fsize=2048")
    with running(adder.path, tmp_path, data=data, capture=QUICK, prefix=prefix) as server:
        with server.client() as client:
            for number in range(60):
                assert ask(client, float(number)).status_code == 200
            eventually(lambda: metric(server, "mlflow_deploy_capture_write_errors_total") >= 1)
            assert ask(client, 1.0).status_code == 200
        if broken == "read-only":
            eventually(lambda: metric(server, "mlflow_deploy_capture_drops_total") >= 60)
        assert any(line["message"].startswith("requests cannot be captured") for line in server.lines())
        kept = everything(CaptureStore(data)).num_rows if broken == "full" else 0
        drops = metric(server, "mlflow_deploy_capture_drops_total")
        assert kept + drops <= 61
        if broken == "full":
            assert CaptureStore(data).drops(3).write_errors >= 1


def test_a_full_queue_drops_and_counts(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    capture = {"flush_seconds": 1.0, "queue_requests": 5}
    with running(adder.path, tmp_path, data=store.folder, capture=capture) as server:
        with server.client() as client:
            for number in range(200):
                assert ask(client, float(number)).status_code == 200
        names = ("mlflow_deploy_capture_drops_total", "mlflow_deploy_captured_requests_total")
        eventually(lambda: sum(metric(server, name) for name in names) == 200)
        dropped, kept = (metric(server, name) for name in names)
        assert dropped > 100
        assert store.drops(3).requests == dropped
        assert everything(store).num_rows == kept


def test_sampling_is_by_request_id_and_columns_by_name(adder: Bundle, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef-secret")
    half, hashed = CaptureStore(tmp_path / "half"), CaptureStore(tmp_path / "hashed")
    sampled = {**QUICK, "sample": 0.5}
    with (
        running(adder.path, tmp_path / "a", data=half.folder, capture=sampled) as server,
        server.client() as client,
    ):
        for value in (1.0, 2.0):
            for number in range(400):
                ask(client, value, id=f"id-{number}")
    rows = everything(half).select(["_request_id", "x"]).to_pylist()
    first, second = ({row["_request_id"] for row in rows if row["x"] == value} for value in (1.0, 2.0))
    assert 140 < len(first) < 260
    assert first == second
    capture = {**QUICK, "hash": ["x"], "hash_key": f"file:{key}", "key": "x"}
    with running(adder.path, tmp_path / "b", data=hashed.folder, capture=capture) as server:
        with server.client() as client:
            ask(client, 7.0, 8.0, 7.0)
            assert client.post("/feedback", json={"key": 8, "label": 10.0}).json() == {"accepted": 1}
        values = settled(hashed, 3).column("x").to_pylist()
    assert values[0] == values[2] != values[1]
    assert len(values[0]) == 32
    joined = hashed.join(everything(hashed), key="x")
    assert joined.rows.select(["prediction", "label"]).to_pylist() == [{"prediction": 10.0, "label": 10.0}]


def test_a_python_model_and_grpc(animals: dict[str, Animal], tmp_path: Path) -> None:
    import tritonclient.grpc as triton

    raising, doubles = animals["raising"], animals["doubles"]
    store = CaptureStore(tmp_path / "python")
    with running(raising.bundle.path, tmp_path / "a", data=store.folder, capture=QUICK) as server:
        with server.client() as client:
            answers = [_first(client, raising) for _ in range(3)]
        table = settled(store, sum(answers))
    assert raising.table is not None
    assert {str(name) for name in raising.table.columns} <= set(table.column_names)
    store = CaptureStore(tmp_path / "grpc")
    with running(doubles.bundle.path, tmp_path / "b", data=store.folder, capture=QUICK, grpc=True) as server:
        assert doubles.table is not None
        with triton.InferenceServerClient(f"127.0.0.1:{server.port + 1}") as rpc:
            inputs = []
            for name in doubles.table.columns:
                tensor = triton.InferInput(name, [2], "FP64")
                tensor.set_data_from_numpy(doubles.table[name].to_numpy(dtype=float)[:2])
                inputs.append(tensor)
            rpc.infer("toy", inputs, request_id="from-grpc")
        table = settled(store, 2)
    assert table.column("_request_id").to_pylist() == ["from-grpc"] * 2
    first = doubles.table.columns[0]
    assert table.column(first).to_pylist() == pytest.approx(doubles.table[first].tolist()[:2], rel=1e-6)


def _first(client: httpx.Client, animal: Animal) -> int:
    """Send the animal's rows; returns how many captured rows that makes."""
    assert animal.table is not None
    body = {
        "dataframe_split": {"columns": list(animal.table.columns), "data": animal.table.to_numpy().tolist()}
    }
    answer = client.post("/invocations", json=body)
    return len(animal.table) if answer.status_code == 200 else 1


def test_feedback(adder: Bundle, tmp_path: Path) -> None:
    store = CaptureStore(tmp_path / "data")
    with running(adder.path, tmp_path, workers=2, data=store.folder, capture=QUICK) as server:
        with server.client() as client:
            ids = [ask(client, 1.0, 2.0).headers["x-request-id"] for _ in range(3)]

            def send(document: Any) -> httpx.Response:
                return client.post("/feedback", json=document)

            assert send({"request_id": ids[0], "label": [3.0, 4.0]}).json() == {"accepted": 2}
            late = {"request_id": ids[1], "row": 1, "label": 5, "time": "2026-01-02T03:04:05+02:00"}
            assert send([late, {"request_id": ids[2], "label": 1}]).json() == {"accepted": 2}
            assert send({"labels": [{"key": 12, "label": True}]}).json() == {"accepted": 1}
            wrong: list[Any] = [
                {}, [], {"label": 1}, {"request_id": "a"}, {"request_id": "a", "key": "b", "label": 1},
                {"request_id": "a", "label": None}, {"request_id": "a", "label": 1, "row": -1},
                {"request_id": "a", "label": [], }, {"request_id": "a", "label": 1, "nope": 2},
                {"request_id": "a" * 2000, "label": 1}, {"request_id": "a", "label": 2**70},
                {"request_id": "a", "label": 1, "time": "yesterday"},
            ]  # fmt: skip
            assert {send(document).status_code for document in wrong} == {400}
            assert client.get("/feedback").status_code == 405
            assert "/feedback" in client.get("/openapi.json").json()["paths"]
            settled(store, 6)
        assert metric(server, "mlflow_deploy_feedback_labels_total") == 5
    labels = {(row["key"], row["row"]): row for row in store.labels().to_pylist()}
    assert len(labels) == 5
    assert labels[ids[1], 1]["time"] == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    report = store.join(everything(store)).report
    assert (report.matched, report.unknown) == (4, 1)


def test_a_server_without_a_data_folder_takes_no_labels(adder: Bundle, tmp_path: Path) -> None:
    with running(adder.path, tmp_path) as server, server.client() as client:
        assert ask(client, 1.0).status_code == 200
        answer = client.post("/feedback", json={"request_id": "a", "label": 1})
        assert answer.status_code == 404
        assert "no labels" in answer.json()["message"]
