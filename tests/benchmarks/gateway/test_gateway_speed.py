"""What the gateway costs: through it against direct to the same scoring server, interleaved in one run.

`pytest tests/benchmarks/gateway -m benchmark -s` prints the table and fails below the bars. The load generator
(wrk), the gateway and the server share two cores. Ratios are taken between neighbouring rounds, so that what
else runs on the machine hits both; the median of the rounds counts.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflow_deploy.gateway.spec import Traffic
from tests.bundles import adder_bundle
from tests.integration.gateway.running import backend, running, scoring_server

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 21
SECONDS = 1
REQUEST = """
wrk.method = "POST"
wrk.body = '{"dataframe_split": {"columns": ["x"], "data": [[1.5]]}}'
wrk.headers["Content-Type"] = "application/json"
"""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Measured:
    """One round of load."""

    rps: float
    p50_ms: float
    p99_ms: float


@contextmanager
def two_cores() -> Iterator[None]:
    """Keep this process and all it starts on two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:2]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wrk(port: int, connections: int, script: Path) -> Measured:
    """Load for a second; every answer must be 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency"]
    url = f"http://127.0.0.1:{port}/invocations"
    text = subprocess.run(
        [*command, "-s", str(script), url], capture_output=True, text=True, check=True
    ).stdout
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text

    def latency(percent: int) -> float:
        value, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
        return float(value) * _UNITS[unit]

    rps = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    return Measured(rps, latency(50), latency(99))


def test_cost_of_the_gateway(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed: apt-get install wrk")
    script = tmp_path / "request.lua"
    script.write_text(REQUEST)
    bundle = adder_bundle(tmp_path / "store", tmp_path / "work", 1.0)
    with two_cores(), scoring_server(bundle, tmp_path) as (_, direct):
        begun = time.monotonic()
        with running(tmp_path, [backend(1, direct)], Traffic({1: 100})) as gateway:
            started = time.monotonic() - begun
            rounds: dict[int, list[tuple[Measured, Measured]]] = {}
            for connections in (1, 32):
                for port in (direct, gateway.port):
                    wrk(port, connections, script)
                rounds[connections] = [
                    (wrk(direct, connections, script), wrk(gateway.port, connections, script))
                    for _ in range(ROUNDS)
                ]
            status = Path(f"/proc/{gateway.process.pid}/status").read_text()
            memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
            failed = gateway.gateway.stats()[1].served.server_errors

    added = statistics.median(through.p50_ms - alone.p50_ms for alone, through in rounds[1])
    kept = statistics.median(through.rps / alone.rps for alone, through in rounds[32])
    rows = [
        ("added at p50, 1 connection", f"{added:.3f} ms", "< 0.5 ms", added < 0.5),
        ("throughput kept, 32 connections", f"{kept:.0%}", ">= 40 %", kept >= 0.4),
        ("start to ready", f"{started:.2f} s", "< 1 s", started < 1),
        ("memory", f"{memory:.0f} MiB", "< 120 MiB", memory < 120),
        ("failed requests", str(failed), "0", failed == 0),
    ]
    print("\n\n| measurement | result | bar | met |\n|---|---|---|---|")
    for what, result, bar, met in rows:
        print(f"| {what} | {result} | {bar} | {'yes' if met else '**no**'} |")
    for connections, pairs in rounds.items():
        for name, index in (("direct", 0), ("gateway", 1)):
            p50, p99, rps = (
                statistics.median(getattr(pair[index], field) for pair in pairs)
                for field in ("p50_ms", "p99_ms", "rps")
            )
            print(
                f"| {name}, {connections} connections | {rps:,.0f}/s, p50 {p50:.3f} ms, p99 {p99:.3f} ms | | |"
            )
    assert all(met for *_, met in rows)
