"""Captured rows on shared storage, in folders and in S3: moved once, judged and read from there."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from mlflow_deploy.config import parse_spec
from mlflow_deploy.errors import ConfigError, DataError, StorageUnavailable
from mlflow_deploy.monitoring.captured import CaptureStore, ShareReport, deployment_captures
from mlflow_deploy.monitoring.jobs import backfill, run_due
from mlflow_deploy.monitoring.overview import overview
from mlflow_deploy.monitoring.shared_storage import SharedFolder
from mlflow_deploy.settings import storage_packages
from tests.unit.monitoring.monitored import START, capture, order, rows

LATER = START + timedelta(days=3)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a server with the API of S3 and the bucket `rows`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        bucket = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3").create_bucket(Bucket="rows", CreateBucketConfiguration=bucket)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of storage."""
    if request.param == "file":
        return f"file://{tmp_path}/share"
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://rows/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}"


def times(store: CaptureStore) -> list[object]:
    found = store.read(1, START - timedelta(days=1), LATER, ["_time"]).column("_time").to_pylist()
    return sorted(found)


def local(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "capture/rev-1").glob("*.parquet"))


def test_rows_move_once_and_read_the_same_from_anywhere(url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for hour in range(4):
        capture(data, rows(50, hour)[0], f"a{hour}")
    store, elsewhere = CaptureStore(data, shared={1: url}), CaptureStore(url)
    store.add_labels(pa.table({"key": ["h0-1"], "label": [1]}), source="test")
    before = times(store)
    assert (elsewhere.revisions(), elsewhere.span(1), elsewhere.labels().num_rows) == ([], None, 0)

    needed = START + timedelta(hours=2)
    assert store.share(1, needed_from=needed) == ShareReport(uploaded=4, removed=2)
    assert store.share(1, needed_from=needed) == ShareReport()
    assert local(data) == ["a2", "a3"]
    assert times(store) == before == times(elsewhere)
    assert store.span(1) == elsewhere.span(1) == (before[0], before[-1])
    assert store.revisions() == elsewhere.revisions() == [1]
    assert elsewhere.labels().equals(store.labels())
    table = elsewhere.table(1, START + timedelta(hours=1), START + timedelta(hours=2))
    assert (table.rows, sum(map(len, table.column("x")))) == (50, 50)
    with pytest.raises(DataError, match="labels add"):
        elsewhere.add_labels(pa.table({"key": ["h0-2"], "label": [1]}), source="test")

    # The same file again under its name, as after a kill before the copy here was removed.
    capture(data, rows(50, 0)[0], "a0")
    assert store.share(1, needed_from=needed) == ShareReport(removed=1)
    assert times(store) == before
    # Retention by age, here and there, and then by size.
    gone = store.expire(1, now=START + timedelta(hours=5), max_age=timedelta(hours=3, minutes=30))
    assert (gone.files, times(elsewhere)) == (1, before[50:])
    sizes = [each.size for each in (SharedFolder(url) / "capture/rev-1").segments()]
    assert store.expire(1, now=START, max_bytes=sizes[-1]).files == 2
    assert times(store) == times(elsewhere) == before[150:]
    assert local(data) == ["a3"]


@pytest.mark.parametrize("protocol", ["file", "s3"])
def test_the_job_moves_what_it_judged_and_judges_again_from_there(
    protocol: str, s3: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    url = f"file://{tmp_path}/share" if protocol == "file" else f"s3://rows/{uuid.uuid4().hex}"
    order(data, **{"capture.url": url, "capture.max_days": 0, "monitor.min_rows": 50})
    for hour, shift in enumerate((0.0, 0.0, 1.0)):
        capture(data, rows(300, hour, shift=shift)[0], f"a{hour}")
    results = run_due(data, now=START + timedelta(hours=3, minutes=5))
    assert [each.state for each in results if each.kind == "drift"] == ["ok", "ok", "alert"]
    # The last window is what the next one is compared with.
    assert local(data) == ["a2"]
    assert run_due(data, now=START + timedelta(hours=3, minutes=6)) == []
    again = backfill(data, START, START + timedelta(hours=2), redo=True)
    first = [(each.kind, each.start, each.rows, each.state) for each in results if each.start < again[-1].end]
    assert [(each.kind, each.start, each.rows, each.state) for each in again] == first
    place = f"{url}/d1/{START:%Y%m%dT%H%M%SZ}"
    assert times(CaptureStore(place)) == times(deployment_captures(data))
    assert len(times(CaptureStore(place))) == 900


def test_a_storage_that_does_not_answer_costs_no_window_and_no_row(tmp_path: Path, s3: str) -> None:
    data = tmp_path / "data"
    order(data, **{"capture.url": "s3://nobody-made-this/rows", "capture.max_days": 0})
    capture(data, rows(300, 0)[0], "a0")
    assert len(run_due(data, now=START + timedelta(hours=1, minutes=5))) == 2
    assert local(data) == ["a0"]

    order(data, **{"capture.url": "file:///proc/version/rows"})
    capture(data, rows(300, 1)[0], "a1")
    with pytest.raises(StorageUnavailable, match="/proc/version/rows"):
        run_due(data, now=START + timedelta(hours=2, minutes=5))
    assert not list((data / "monitor").rglob("*.trying"))
    (note,) = {note for entry in overview(data, now=START) for note in entry["notes"] if "storage" in note}
    assert "/proc/version/rows" in note
    order(data)
    assert {each.rows for each in run_due(data, now=START + timedelta(hours=2, minutes=5))} == {300}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


DIES = """
import os, signal, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from mlflow_deploy.monitoring.captured import CaptureStore

real = getattr(LocalFileSystem, sys.argv[1])

def dies(*args, **kwargs):
    if sys.argv[2] == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(LocalFileSystem, sys.argv[1], dies)
CaptureStore(Path(sys.argv[3]), shared={1: sys.argv[4]}).share(1)
"""


@pytest.mark.parametrize(("step", "when"), [("put_file", "after"), ("mv", "before"), ("mv", "after")])
def test_killed_between_upload_and_commit_every_row_is_there_once(
    step: str, when: str, tmp_path: Path
) -> None:
    data, share = tmp_path / "data", tmp_path / "share"
    capture(data, rows(100, 0)[0], "a0")
    store = CaptureStore(data, shared={1: f"file://{share}"})
    before = times(store)
    done = subprocess.run([sys.executable, "-c", DIES, step, when, data, f"file://{share}"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(share / "capture/rev-1")) == 1
    assert times(store) == before
    report = store.share(1, needed_from=LATER)
    assert report == ShareReport(uploaded=int((step, when) != ("mv", "after")), removed=1)
    assert times(store) == times(CaptureStore(f"file://{share}")) == before
    assert [name[0] == "." for name in names(share / "capture/rev-1")] == [False]


def test_a_half_written_upload_is_never_read(tmp_path: Path) -> None:
    data, share = tmp_path / "data", tmp_path / "share/capture/rev-1"
    capture(data, rows(100, 0)[0], "a0")
    share.mkdir(parents=True)
    (share / ".a9.0123456789abcdef.parquet.uploading").write_bytes(b"PAR1")
    store = CaptureStore(data, shared={1: f"file://{tmp_path}/share"})
    assert len(times(store)) == 100
    store.share(1)
    assert len(names(share)) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bucket/prefix", "URL such as"),
        ("memory://rows", "ends with each process"),
        ("sftp://me:secret@host/rows", "password"),
    ],
)
def test_urls_that_cannot_work_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec({"capture.url": url})


def test_the_monitor_image_gets_the_packages_of_the_protocol() -> None:
    assert storage_packages("") == ()
    assert storage_packages("sftp://host/rows") == ("fsspec",)
    assert storage_packages("s3://bucket/rows") == ("fsspec", "s3fs")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageUnavailable, match="'gcsfs' is not installed"):
        CaptureStore("gs://bucket/rows").revisions()
    with pytest.raises(StorageUnavailable, match="Protocol not known: nothing"):
        CaptureStore("nothing://bucket/rows").span(1)
