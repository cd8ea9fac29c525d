"""How often revisions were right, by the labels that have come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mlflow_deploy.monitoring.capture_files import MICROSECONDS
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.monitoring.outcomes import count_outcomes

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def captured(store: CaptureStore, revision: int, answers: list[Any], status: int = 200) -> None:
    """Rows of a revision, one a minute from noon on; the requests are r1-0, r1-1 and so on."""
    count = len(answers)
    batch = pa.record_batch(
        {
            "_request_id": pa.array([f"r{revision}-{number}" for number in range(count)]),
            "_row": pa.array([0] * count, pa.int32()),
            "_time": pa.array([NOON + timedelta(minutes=number) for number in range(count)], MICROSECONDS),
            "_latency_ms": pa.array([1.0] * count, pa.float32()),
            "_status": pa.array([status] * count, pa.int16()),
            "prediction": pa.array(answers),
        }
    )
    path = store.revision_folder(revision) / "open" / "w.arrows"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.fixture
def store(tmp_path: Path) -> CaptureStore:
    """Revision 1 answered 1, 2, 3, 4 and revision 2 answered 1, 2, 30, 40."""
    store = CaptureStore(tmp_path)
    captured(store, 1, [1.0, 2.0, 3.0, 4.0])
    captured(store, 2, [1.0, 2.0, 30.0, 40.0])
    return store


def label(store: CaptureStore, revision: int, labels: list[Any]) -> None:
    keys = [f"r{revision}-{number}" for number in range(len(labels))]
    store.add_labels(pa.table({"key": keys, "label": labels}), source="test")


def test_without_labels_nothing_is_known(store: CaptureStore) -> None:
    assert count_outcomes(store, [1, 2], NOON, NOON + DAY) == {}


def test_right_and_wrong_are_counted_for_each_revision(store: CaptureStore) -> None:
    for revision in (1, 2):
        label(store, revision, [1, 2, 3])
    assert count_outcomes(store, [1, 2, 3], NOON, NOON + DAY) == {1: (3, 0), 2: (2, 1)}
    # The third answer of each came later than this.
    assert count_outcomes(store, [1, 2], NOON, NOON + timedelta(minutes=2)) == {1: (2, 0), 2: (2, 0)}


def test_numbers_are_right_within_the_tolerance(store: CaptureStore) -> None:
    label(store, 1, [1.05, 2.5, -3.0, 4.0])
    assert count_outcomes(store, [1], NOON, NOON + DAY) == {1: (1, 3)}
    assert count_outcomes(store, [1], NOON, NOON + DAY, tolerance=0.1) == {1: (2, 2)}


def test_texts_are_compared_as_they_are(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    captured(store, 1, ["late", "on time", "late"])
    label(store, 1, ["late", "late", "late"])
    assert count_outcomes(store, [1], NOON, NOON + DAY) == {1: (2, 1)}


def test_failed_requests_are_no_answers(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    captured(store, 1, [1.0, 2.0], status=500)
    label(store, 1, [1.0, 2.0])
    assert count_outcomes(store, [1], NOON, NOON + DAY) == {}
