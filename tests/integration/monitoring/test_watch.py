"""The waiting job, as a process."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlflow_deploy.monitoring.captured import TIME
from mlflow_deploy.monitoring.store import ResultStore
from tests.unit.monitoring.monitored import capture, order, rows
from tests.waiting import eventually


def test_a_window_of_rows_is_judged_after_its_grace_without_new_traffic(tmp_path: Path) -> None:
    window = {"monitor.window": "200rows", "monitor.grace_seconds": 3, "monitor.kinds": "drift"}
    order(tmp_path, **window)
    with watching(tmp_path):
        captured = capture_now(tmp_path, "a")
        results = ResultStore(tmp_path)
        eventually(lambda: len(results.results()) == 1)
        judged = datetime.now(UTC)
    (result,) = results.results()
    assert (result.rows, result.state) == (200, "ok")
    assert judged - captured > timedelta(seconds=3)


def test_a_server_that_does_not_answer_delays_no_verdict(tmp_path: Path) -> None:
    asked, over = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                asked.set()
                over.wait(120)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    window = {"monitor.window": "200rows", "monitor.grace_seconds": 0, "monitor.kinds": "drift"}
    order(tmp_path, uri=uri, **window)
    results = ResultStore(tmp_path)
    try:
        with watching(tmp_path, MLFLOW_HTTP_REQUEST_TIMEOUT="600"):
            capture_now(tmp_path, "a")
            eventually(lambda: len(results.results()) == 1)
            assert asked.wait(60), "the first result is on its way to MLflow"
            capture_now(tmp_path, "b")
            eventually(lambda: len(results.results()) == 2)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
    assert not [each.run_id for each in results.results() if each.run_id]


def test_a_problem_and_its_end_are_told_before_the_other_windows_of_a_downtime_are_judged(
    tmp_path: Path,
) -> None:
    data, program, told = tmp_path / "data", tmp_path / "tell.py", tmp_path / "told"
    program.write_text(
        "import json, pathlib, sys\n"
        "status = json.load(sys.stdin)['status']\n"
        "judged = len(list(pathlib.Path(sys.argv[1]).glob('monitor/rev-1/drift/[0-9]*.json')))\n"
        "print(status, judged, file=open(sys.argv[2], 'a'))\n"
    )
    config = {"window": "200rows", "grace_seconds": 0, "kinds": "drift", "alert.group_seconds": 0}
    config["alert.command"] = f"{sys.executable} {program} {data} {told}"
    order(data, **{f"monitor.{name}": value for name, value in config.items()})
    for hour, shift in enumerate((0, 3, 0, 0, 0)):
        capture(data, rows(200, hour, shift=shift)[0], f"h{hour}")
    job = [sys.executable, "-m", "mlflow_deploy.monitoring.job", "round", str(data)]
    subprocess.run(job, check=True, stderr=subprocess.DEVNULL)
    assert len(ResultStore(data).results()) == 5
    assert told.read_text().splitlines() == ["firing 2", "recovered 3"]


@contextmanager
def watching(data: Path, **environment: str) -> Iterator[None]:
    """The job of a data folder."""
    command = [sys.executable, "-m", "mlflow_deploy.monitoring.job", "watch", str(data)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment}) as job:
        try:
            yield
        finally:
            job.terminate()
            job.wait(60)


def capture_now(data: Path, name: str) -> datetime:
    """Put 200 rows of this moment where sealed files are."""
    table, _ = rows(200, 0)
    now = datetime.now(UTC)
    times = pa.array([now + timedelta(microseconds=at) for at in range(200)], table.schema.field(TIME).type)
    capture(data, table.set_column(table.column_names.index(TIME), TIME, times), name)
    return now
