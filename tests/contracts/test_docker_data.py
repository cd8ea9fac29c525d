"""The data volume of a deployment on Docker: servers that are not root capture into it, and labels come."""

from __future__ import annotations

import io
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.monitoring.label_store import normal_labels
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker import DockerTarget
from mlflow_deploy.targets.docker_files import DATA
from mlflow_deploy.testing.targets import record_of
from tests.bundles import adder_bundle
from tests.engine import BASE, things

SPACE = f"data-{uuid.uuid4().hex[:8]}"
SPEC: dict[str, Any] = {"monitor": {"kinds": ["drift"]}, "capture": {"flush_seconds": 0.05}}


@pytest.fixture
def target(
    engine: Any, with_locks: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerTarget]:
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", with_locks(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
    target = DockerTarget(namespace=SPACE)
    yield target
    for name in target.names():
        target.remove(name)
    assert things(engine, SPACE) == []


def volume(engine: Any, container: str, folder: Path) -> CaptureStore:
    """A copy of the data volume as it is now."""
    chunks, _ = engine.api.get_archive(container, DATA)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        tar.extractall(folder, filter="data")
    return CaptureStore(folder / Path(DATA).name)


@pytest.mark.slow
@pytest.mark.parametrize("user", ["", "12345", "12345:678"])
def test_servers_capture_into_the_volume(
    engine: Any, target: DockerTarget, tmp_path: Path, user: str
) -> None:
    bundle = adder_bundle(tmp_path / "store", tmp_path, 2.0)
    record = msgspec.structs.replace(record_of(target, "d1", [bundle]), gateway="none")
    revision = record.revision(1)
    spec = {**revision.spec, **SPEC, "docker": {"user": user}}
    record = msgspec.structs.replace(record, revisions=(msgspec.structs.replace(revision, spec=spec),))
    target.write_record(record)
    target.start(record, record.revision(1), bundle)
    for number in range(20):
        body = {"dataframe_split": {"columns": ["x"], "data": [[float(number)]]}}
        headers = {"x-request-id": f"q{number}"}
        answer = requests.post(f"{target.url(record)}/invocations", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
    label = {"request_id": "q1", "label": 3.0}
    assert requests.post(f"{target.url(record)}/feedback", json=label, timeout=60).status_code == 200
    labels = io.BytesIO()
    pq.write_table(normal_labels(pa.table({"key": ["q2"], "label": [4.0]}), source="test"), labels)
    target.add_labels(record, labels.getvalue())
    time.sleep(0.5)
    (container,) = engine.api.containers(
        filters={"label": [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=revision"]}
    )
    inspected = engine.api.inspect_container(container["Id"])
    assert inspected["HostConfig"]["ReadonlyRootfs"]
    assert inspected["Config"]["User"].partition(":")[0] not in ("", "0", "root")
    store = volume(engine, container["Id"], tmp_path / "copy")
    span = store.span(1)
    assert span is not None
    rows = store.read(1, span[0], span[1] + timedelta(seconds=1))
    assert rows.num_rows == 20
    joined = store.join(rows)
    assert (joined.report.matched, joined.report.labels) == (2, 2)
    assert store.seal(1).rows == 21
