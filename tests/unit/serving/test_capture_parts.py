"""The parts of capture: streams that survive, columns of every kind of model, labels in a body."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlflow_deploy.bundle import Bundle, Feed, Manifest, ModelSource, Servable
from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import ConfigError, UnknownSetting
from mlflow_deploy.serving.arrow_stream import Column, StreamFiles, make_batch
from mlflow_deploy.serving.capture import Capture
from mlflow_deploy.serving.capture_columns import Answers, Features
from mlflow_deploy.serving.capture_records import RowRecords
from mlflow_deploy.serving.capture_retention import expire
from mlflow_deploy.serving.config import ServerConfig, parse_config
from mlflow_deploy.serving.errors import RequestError
from mlflow_deploy.serving.protocols.feedback import parse
from mlflow_deploy.serving.rows import RowPacker
from mlflow_deploy.settings import CaptureSettings


def bundle(*feeds: Feed) -> Bundle:
    servable = Servable(kind="onnx", path="servable/model.onnx", feeds=feeds)
    manifest = Manifest(schema=1, model=ModelSource(uri=""), servable=servable)
    return Bundle(path=Path(), manifest=manifest, digest="")


def values(columns: list[Column]) -> dict[str, list[Any]]:
    rows = len(columns[0].values) if columns else 0
    batch = pa.record_batch(make_batch(columns, rows))
    return {name: batch.column(name).to_pylist() for name in batch.schema.names}


def of(features: Features, calls: list[tuple[Any, int]]) -> list[Column]:
    return features.columns([data for data, _ in calls], [rows for _, rows in calls])


def test_batches_hold_every_type() -> None:
    columns = [
        Column("f", np.array([1.5, np.nan], np.float32)),
        Column("h", np.array([1.5, 2.0], np.float16)),
        Column("i", np.array([1, 2], np.longlong), np.array([True, False])),
        Column("b", np.array([True, False])),
        Column("s", np.array(["é", "\ud800"], object), np.array([True, True])),
        Column("t", np.array(["2026-01-02T03:04:05", "NaT"], "datetime64[us]"), np.array([True, False])),
    ]
    found = values(columns)
    assert found["h"] == [1.5, 2.0]
    assert found["i"] == [1, None]
    assert found["b"] == [True, False]
    assert found["s"] == ["é", "?"]
    assert found["t"] == [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None]


def read(path: Path) -> pa.Table:
    return pa.ipc.open_stream(path.read_bytes()).read_all()


def test_streams_begin_anew_by_size_and_when_columns_change(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, max_bytes=4096, max_seconds=1000)

    def write(kind: type, rows: int) -> None:
        files.write([Column("x", np.arange(rows).astype(kind))], rows)

    write(np.float64, 10)
    write(np.float64, 1000)
    (first,) = (tmp_path / "open").glob("*.arrows")
    assert read(first).num_rows == 1010
    with first.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    write(np.float64, 1)
    write(np.int64, 1)
    files.close()
    files.close()
    assert len(list((tmp_path / "open").glob("*.arrows"))) == 3
    for path in (tmp_path / "open").iterdir():
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_batch_that_does_not_fit_leaves_the_others_whole(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, max_bytes=1 << 20, max_seconds=1000)
    files.write([Column("x", np.arange(10))], 10)
    (path,) = (tmp_path / "open").glob("*.arrows")
    whole = path.stat().st_size
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 100:
            return real(fd, bytes(data)[:100])
        raise OSError(28, "No space left on device")

    os.write = full  # type: ignore[assignment]
    try:
        with pytest.raises(OSError, match="No space"):
            files.write([Column("x", np.arange(1000))], 1000)
    finally:
        os.write = real
    assert path.stat().st_size == whole
    files.write([Column("x", np.arange(5))], 5)
    files.close()
    assert sorted(read(each).num_rows for each in (tmp_path / "open").iterdir()) == [5, 10]


def test_features_of_graphs() -> None:
    feeds = (
        Feed(name="numbers", dtype="float32", columns=("a", "b")),
        Feed(name="word", dtype="str", columns=("c",), missing="nan"),
    )
    features = Features(bundle(*feeds), CaptureSettings(exclude=("b",)))
    calls = [
        ({"numbers": np.array([[1, 2]], np.float32), "word": np.array([["x"]], object)}, 1),
        ({"numbers": np.ones((2, 2), np.float32), "word": np.array([["nan"], ["y"]], object)}, 2),
    ]
    assert values(of(features, calls)) == {"a": [1.0, 1.0, 1.0], "c": ["x", None, "y"]}
    only = Features(bundle(*feeds), CaptureSettings(columns=("c",)))
    assert list(values(of(only, calls))) == ["c"]


def test_packed_rows_and_arrays_together() -> None:
    features = Features(bundle(Feed(name="X", dtype="float32", columns=("a", "b"))), CaptureSettings())
    packed = RowPacker("X", "float32", 2)([[1.0, 2.0]])
    assert values(of(features, [(packed, 1), (packed, 1)])) == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    mixed = [(packed, 1), ({"X": np.array([[3, 4]], np.float32)}, 1)]
    assert values(of(features, mixed)) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_tensors_are_flattened_or_left_out() -> None:
    settings = CaptureSettings(max_values=4)
    small = Features(bundle(Feed(name="X", dtype="float32", tensor="img", shape=(-1, 2, 2))), settings)
    found = values(of(small, [({"X": np.arange(8, dtype=np.float32).reshape(2, 2, 2)}, 2)]))
    assert found == {"img_0": [0, 4], "img_1": [1, 5], "img_2": [2, 6], "img_3": [3, 7]}
    assert of(small, [({"X": np.zeros((1, 5), np.float32)}, 1)]) == []
    assert "capture.max_values" in small.left_out["img"]
    assert of(small, [({"X": np.zeros((3, 1), np.float32)}, 1)]) == []
    assert "each row" in small.left_out["img"]


def test_features_of_python_models() -> None:
    features = Features(bundle(), CaptureSettings())
    frames = [
        pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [[1], [2]]}),
        pd.DataFrame({"a": [None, 4.0], "b": ["y", "z"], "c": [[1], [2]]}),
    ]
    found = values(of(features, [((frame, None, False), 2) for frame in frames]))
    assert found == {"a": [1.0, 2.0, None, 4.0], "b": ["x", None, "y", "z"]}
    assert features.left_out == {"c": "its type cannot be kept"}
    arrays = [((np.ones((1, 2)), None, False), 1), (({"p": np.zeros((2, 1))}, None, False), 2)]
    assert values(of(features, arrays[:1])) == {"inputs_0": [1.0], "inputs_1": [1.0]}
    assert values(of(features, arrays[1:])) == {"p": [0.0, 0.0]}


def test_answers_and_probabilities() -> None:
    def columns(*named: tuple[str, Any], classes: tuple[str, ...] = ()) -> dict[str, list[Any]]:
        result = tuple((name, np.asarray(value)) for name, value in named)
        return values(Answers(lambda given: given, 256, classes).columns([result, result], [2, 2]))

    assert columns(("predictions", [1, 0])) == {"prediction": [1, 0, 1, 0]}
    assert columns(("predictions", [[1.0], [2.0]])) == {"prediction": [1.0, 2.0, 1.0, 2.0]}
    assert list(columns(("predictions", [[0.25, 0.75], [1.0, 0.0]]))) == ["probability_0", "probability_1"]
    named = columns(("predictions", [[0.25, 0.75], [1.0, 0.0]]), classes=("no", "yes"))
    assert list(named) == ["probability_no", "probability_yes"]
    assert list(columns(("predictions", [[5.0, 7.0], [1.0, 0.0]]))) == ["prediction_0", "prediction_1"]
    assert list(columns(("label", ["a", "b"]), ("score", [0.1, 0.2]))) == [
        "prediction_label",
        "prediction_score",
    ]


def test_hashing_needs_a_key_that_is_long_enough(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"short")
    settings = CaptureSettings(hash=("a",), hash_key=f"file:{key}")
    with pytest.raises(ConfigError, match="too short"):
        Features(bundle(), settings)
    key.write_bytes(b"long enough to be a key")
    features = Features(bundle(Feed(name="X", dtype="float64", columns=("a",))), settings)
    hashes = values(of(features, [({"X": np.array([[7.0], [np.nan], [7.0], [8.0]])}, 4)]))["a"]
    assert hashes[1] is None
    assert hashes[0] == hashes[2] != hashes[3]
    assert CaptureSettings(hash=("a",)).refusal()


def test_retention_leaves_what_is_being_written(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, max_bytes=1 << 20, max_seconds=1000)
    files.write([Column("x", np.arange(1000))], 1000)
    for at, name in enumerate(("a", "b")):
        (tmp_path / f"{name}.parquet").write_bytes(bytes(1000))
        os.utime(tmp_path / f"{name}.parquet", (at, at))
    assert expire(tmp_path, 0, 0) == 0
    assert expire(tmp_path, 0, 9500) == 1
    assert not (tmp_path / "a.parquet").exists()
    assert expire(tmp_path, 1, 0) == 1
    assert expire(tmp_path, 0, 1) == 0
    files.close()
    assert expire(tmp_path, 0, 1) == 1


def test_putting_costs_the_request_next_to_nothing(tmp_path: Path) -> None:
    """About a microsecond; the bar leaves room for a busy machine."""
    from time import perf_counter

    config = ServerConfig(data=str(tmp_path), capture=CaptureSettings(queue_requests=1_000_000))
    capture = Capture(bundle(), config)
    call: Any = SimpleNamespace(rows=1, asked={}, answer=[])
    best = 1.0
    for _ in range(20):
        begun = perf_counter()
        for _ in range(1000):
            capture.put("an-id", 0.0, 0.0, 200, call)
        best = min(best, (perf_counter() - begun) / 1000)
    assert best < 5e-6


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b'{"labels": 3}', b'{"key": [], "label": 1}'])
def test_bodies_that_are_no_labels(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse(body)


def test_labels_for_each_row() -> None:
    found = parse(
        b'[{"request_id": "a", "label": ["x", "y"]}, {"key": 3, "label": 1.5, "time": "2026-01-01T00:00:00"}]'
    )
    assert [(label.request_id, label.key, label.row, label.label) for label in found] == [
        ("a", "", 0, "x"),
        ("a", "", 1, "y"),
        ("", 3, 0, 1.5),
    ]
    assert found[2].time == datetime(2026, 1, 1, tzinfo=UTC)


def test_settings_from_the_command_line() -> None:
    spec = parse_spec({"capture.columns": "a, b", "capture.sample": "0.5"})
    assert (spec.capture.columns, spec.capture.sample, spec.captures) == (("a", "b"), 0.5, True)
    assert parse_spec({}, base=spec).capture == spec.capture
    assert not parse_spec({"capture.enabled": "false"}).captures
    assert not parse_spec({"monitor": "none"}).captures
    for wrong in ({"sample": 2}, {"hash": "a"}, {"queue_rows": 0}, {"nosuch": 1}):
        with pytest.raises((ConfigError, UnknownSetting)):
            parse_spec({"capture": wrong})
        with pytest.raises((ConfigError, UnknownSetting)):
            parse_config({"capture": {**wrong, "hash": ["a"]} if "hash" in wrong else wrong})


def one_row(packer: RowPacker, number: int, answer: list[Any]) -> Any:
    packed = packer([[number, 0.5]])
    return SimpleNamespace(rows=1, asked=packed, answer=answer)


def test_records_hold_what_calls_hold(tmp_path: Path) -> None:
    """Requests of one row become records; the others, and what does not fit, are kept beside them."""
    packer = RowPacker("X", "float32", 2)
    capture = Capture(
        bundle(Feed(name="X", dtype="float32", columns=("a", "b"))), ServerConfig(data=str(tmp_path))
    )
    capture._answers = Answers(lambda result: [("label", result[0]), ("p", result[1])], 64)
    ids = [f"{number:036d}" for number in range(3)]
    for number, request_id in enumerate([*ids, "short", "x" * 41, "é" * 36]):
        answer = [np.array([number], np.int64), np.array([[0.25, 0.75]], np.float32)]
        capture.put(request_id, float(number), 0.5, 200, one_row(packer, number, answer))
    wide = [np.array([9], np.int64), np.array([[0.25, 0.25, 0.5]], np.float32)[:, ::2]]
    capture.put("x" * 36, 9.0, 0.5, 200, one_row(packer, 9, wide))
    capture.put("y" * 36, 10.0, 0.5, 400, None)
    assert [isinstance(each, bytes) for each in capture._queue] == [True] * 4 + [False] * 4
    ids += ["short", "x" * 41]
    capture.close()
    (path,) = tmp_path.rglob("*.arrows")
    rows = read(path).to_pylist()
    assert [row["_request_id"] for row in rows] == [*ids, "é" * 36, "x" * 36, "y" * 36]
    assert [row["a"] for row in rows] == [0, 1, 2, 3, 4, 5, 9, None]
    assert [row["prediction_label"] for row in rows] == [0, 1, 2, 3, 4, 5, 9, None]
    assert [row["prediction_p_1"] for row in rows] == [0.75] * 6 + [0.5, None]
    assert {row["_latency_ms"] for row in rows} == {500.0}
    assert [row["_status"] for row in rows] == [200] * 7 + [400]
    assert (rows[3]["_time"] - rows[0]["_time"]).total_seconds() == pytest.approx(3, abs=0.5)
    assert capture.counts.kept == 8


def test_outputs_that_are_text_have_no_records() -> None:
    records, packer = RowRecords(), RowPacker("X", "float32", 1)
    given = packer([[1.0]])
    assert records.pack("x" * 36, 0.0, 0.0, given, [np.array(["a"], object)]) is None
    assert records.pack("x" * 36, 0.0, 0.0, given, [np.array([1.0])]) is None
