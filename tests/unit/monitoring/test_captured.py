"""The capture reader: open streams and sealed files alike, each row once, whatever was killed in between."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from mlflow_deploy.errors import DataError
from mlflow_deploy.monitoring import build_profile
from mlflow_deploy.monitoring.capture_files import MICROSECONDS
from mlflow_deploy.monitoring.captured import CaptureStore, Drops

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def rows(first: int, count: int, **columns: pa.Array) -> pa.RecordBatch:
    """Captured rows, one a second from noon on."""
    numbers = range(first, first + count)
    return pa.record_batch(
        {
            "_request_id": pa.array([f"q{number}" for number in numbers]),
            "_row": pa.array([0] * count, pa.int32()),
            "_time": pa.array([NOON + timedelta(seconds=number) for number in numbers], MICROSECONDS),
            "_latency_ms": pa.array([1.0] * count, pa.float32()),
            "_status": pa.array([200] * count, pa.int16()),
            "x": pa.array([float(number) for number in numbers]),
            "prediction": pa.array([float(number) * 2 for number in numbers]),
            **columns,
        }
    )


def stream(store: CaptureStore, name: str, *batches: pa.RecordBatch, end: bool = True) -> Path:
    """Write a stream as a server does; without its end as one that was killed leaves it."""
    path = store.revision_folder(1) / "open" / f"{name}.arrows"
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, batches[0].schema)
    for batch in batches:
        writer.write_batch(batch)
    whole = sink.tell()
    writer.close()
    data = sink.getvalue().to_pybytes()
    path.write_bytes(data if end else data[:whole])
    return path


@pytest.fixture
def store(tmp_path: Path) -> CaptureStore:
    return CaptureStore(tmp_path / "data")


def read(store: CaptureStore, **kwargs: object) -> pa.Table:
    return store.read(1, NOON, NOON + timedelta(days=1), **kwargs).sort_by("_time")  # type: ignore[arg-type]


def test_an_empty_folder_has_nothing(store: CaptureStore) -> None:
    assert store.revisions() == []
    assert store.span(1) is None
    assert read(store, columns=["x", "_time"]).column_names == ["x", "_time"]
    assert store.drops(1) == Drops()
    assert store.labels().column_names[:3] == ["key", "row", "label"]
    assert store.seal(1).sealed == 0


def test_open_and_sealed_rows_read_alike(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 10), rows(10, 10))
    before = read(store)
    report = store.seal(1)
    stream(store, "b", rows(20, 5), end=False)
    assert (report.sealed, report.rows) == (1, 20)
    assert not list((store.revision_folder(1) / "open").glob("a*"))
    after = read(store)
    assert after.slice(0, 20).equals(before)
    assert after.column("x").to_pylist() == [float(number) for number in range(25)]
    assert store.span(1) == (NOON, NOON + timedelta(seconds=24))
    assert store.revisions() == [1]


def test_times_are_half_open_and_need_a_zone(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 10))
    store.seal(1)
    stream(store, "b", rows(10, 10))
    start, end = NOON + timedelta(seconds=5), NOON + timedelta(seconds=15)
    assert sorted(store.read(1, start, end, ["x"]).column("x").to_pylist()) == [
        float(n) for n in range(5, 15)
    ]
    assert sum(batch.num_rows for batch in store.batches(1, start, end)) == 10
    with pytest.raises(DataError, match="time zone"):
        store.read(1, start.replace(tzinfo=None), end)


def test_a_cut_stream_keeps_its_complete_batches(store: CaptureStore) -> None:
    whole = stream(store, "a", rows(0, 10), rows(10, 10), end=False)
    whole.write_bytes(whole.read_bytes()[:-100])
    assert read(store).num_rows == 10
    report = store.seal(1)
    assert (report.sealed, report.rows, report.truncated) == (1, 10, 1)
    assert read(store).num_rows == 10


def test_a_stream_in_use_is_not_sealed(store: CaptureStore) -> None:
    path = stream(store, "a", rows(0, 10), end=False)
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        report = store.seal(1)
    assert (report.sealed, report.open) == (0, 1)
    assert read(store).num_rows == 10
    assert store.seal(1).sealed == 1


def test_a_kill_while_sealing_counts_nothing_twice(store: CaptureStore) -> None:
    path = stream(store, "a", rows(0, 10))
    data = path.read_bytes()
    store.seal(1)
    # Killed after the rename and before the stream was removed, and another time while writing aside.
    path.write_bytes(data)
    (store.revision_folder(1) / ".b.parquet.new").write_bytes(b"half")
    assert read(store).num_rows == 10
    assert store.seal(1).sealed == 0
    assert not path.exists()
    assert not list(store.revision_folder(1).glob(".b*"))
    assert read(store).num_rows == 10


def test_what_is_no_stream_is_set_aside(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 10))
    (store.revision_folder(1) / "open" / "b.arrows").write_bytes(b"this is no Arrow stream at all")
    (store.revision_folder(1) / "open" / "c.arrows").write_bytes(b"")
    assert read(store).num_rows == 10
    report = store.seal(1)
    assert (report.sealed, report.empty, report.broken) == (1, 1, ("b.arrows",))
    assert (store.revision_folder(1) / "open" / "b.arrows.broken").exists()


def test_columns_that_differ_between_files_are_brought_together(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 2, k=pa.array([1, 2]), only=pa.array([1, 2])))
    store.seal(1)
    stream(store, "b", rows(2, 2, k=pa.array(["c", "d"])))
    table = read(store)
    assert table.column("k").to_pylist() == ["1", "2", "c", "d"]
    assert table.column("only").to_pylist() == [1, 2, None, None]
    with pytest.raises(DataError, match="nosuch"):
        read(store, columns=["nosuch"])


def test_the_table_is_what_profiles_take(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 60))
    store.seal(1)
    stream(store, "b", rows(60, 40), end=False)
    table = store.table(1, NOON, NOON + timedelta(days=1))
    # What comes after the table was made does not come into it.
    stream(store, "b", rows(60, 40), rows(100, 40), end=False)
    profile = build_profile(table)
    assert profile.rows == 100
    assert {column.name for column in profile.columns} >= {"x", "prediction"}


def test_retention_by_age_and_size(store: CaptureStore) -> None:
    for at in range(4):
        stream(store, f"s{at}", rows(at * 100, 100))
        store.seal(1)
    sizes = [path.stat().st_size for path in sorted(store.revision_folder(1).glob("*.parquet"))]
    gone = store.expire(1, now=NOON + timedelta(seconds=150), max_age=timedelta(seconds=20))
    assert (gone.files, gone.bytes) == (1, sizes[0])
    gone = store.expire(1, now=NOON, max_bytes=sum(sizes[2:]))
    assert gone.files == 1
    assert read(store).column("x")[0].as_py() == 200.0


def test_drops_of_all_processes_are_summed(store: CaptureStore) -> None:
    folder = store.revision_folder(1) / "counts"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"requests": 3, "rows": 4, "write_errors": 1}')
    (folder / "b.json").write_text('{"requests": 2}')
    assert store.drops(1) == Drops(requests=5, rows=4, write_errors=1)


def test_labels_are_kept_and_joined_by_request_and_row(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 10))
    came = pa.array([NOON + timedelta(hours=1)] * 4, pa.timestamp("s", tz="UTC"))
    first = {"key": ["q1", "q2", "q2", "nosuch"], "label": [1, 0, 1, 1], "time": came}
    assert store.add_labels(pa.table(first), source="test") == 4
    assert store.add_labels(pa.table({"key": ["q3"], "label": [0.5], "row": [1]}), source="late") == 1
    labels = store.labels()
    assert labels.num_rows == 5
    assert set(labels.column("source").to_pylist()) == {"test", "late"}
    joined = store.join(read(store), late_after=timedelta(minutes=1), conflicts="leave out")
    assert joined.rows.column("_request_id").to_pylist() == ["q1"]
    report = joined.report
    assert (report.matched, report.conflicting, report.unknown, report.late) == (1, 2, 2, 1)


def test_labels_by_a_key_column(store: CaptureStore) -> None:
    stream(store, "a", rows(0, 3, flight=pa.array([11, 12, 13])))
    store.add_labels(pa.table({"key": ["12", "13"], "label": ["yes", "no"]}), source="test")
    joined = store.join(read(store), key="flight")
    assert joined.rows.column("label").to_pylist() == ["yes", "no"]


def test_labels_that_cannot_be_used_are_refused(store: CaptureStore) -> None:
    with pytest.raises(DataError, match="label"):
        store.add_labels(pa.table({"key": ["a"]}), source="test")
    with pytest.raises(DataError, match="cannot be used"):
        store.add_labels(pa.table({"key": ["a"], "label": [[1]]}), source="test")
    with pytest.raises(DataError, match="times"):
        store.add_labels(pa.table({"key": ["a"], "label": [1], "time": [7]}), source="test")
    assert store.labels().num_rows == 0
