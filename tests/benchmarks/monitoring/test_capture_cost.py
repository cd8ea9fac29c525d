"""What capture costs the scoring server, as ratios between two servers in one interleaved run.

`pytest tests/benchmarks/monitoring/test_capture_cost.py -m benchmark -s` prints the numbers and fails below the
bars. As in the benchmark of serving, throughput is per second of the server's processor time, writer included.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.serving.load import _receive as receive
from tests.benchmarks.serving.test_serving_speed import PIN, Lane, json_request, measure
from tests.integration.serving import bundles
from tests.integration.serving.running import Running, running

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(300)]

MOST_COST = 0.08
CONNECTIONS = 16
RATE = 1000  # requests a second
PACED_SECONDS = 2.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running, Path]]:
    """Two servers of gradient boosting on thirty columns: without capture and with it at full sampling."""
    folder = tmp_path_factory.mktemp("cost")
    _, bundle = bundles.boosting(folder / "model")
    row = bundles.training_table()[0].iloc[3]
    body = {"dataframe_split": {"columns": list(row.index), "data": [row.tolist()]}}
    request = json_request(folder, "row", body)
    with (
        running(bundle.path, folder / "off", prefix=PIN) as off,
        running(bundle.path, folder / "on", prefix=PIN, data=folder / "data") as on,
    ):
        yield off, on, request


def test_full_sampling_costs_little_at_the_peak(pair: tuple[Running, Running, Path]) -> None:
    off, on, request = pair
    lanes = [
        Lane("without capture", off.port, request, off.process.pid),
        Lane("with capture", on.port, request, on.process.pid),
    ]
    measure(lanes, [CONNECTIONS], rounds=8, seconds=2)
    without, with_capture = (lane.rps(CONNECTIONS) for lane in lanes)
    medians = [statistics.median(each["per_cpu"] for each in lane.results[CONNECTIONS]) for lane in lanes]
    cost = 1 - with_capture / without
    print(
        f"\nrequests/s of processor time: {without:.0f} without, {with_capture:.0f} with capture: {cost:.1%};"
        f" of the medians {1 - medians[1] / medians[0]:.1%}"
    )
    with on.client() as client:
        lines = dict(
            line.rsplit(" ", 1)
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("mlflow")
        )
    captured = float(lines["mlflow_deploy_captured_requests_total"])
    drops = float(lines["mlflow_deploy_capture_drops_total"])
    answered = sum(each["requests"] for each in lanes[1].results[CONNECTIONS])
    print(f"{captured:.0f} requests captured, {drops:.0f} dropped")
    assert drops <= 0.001 * answered
    assert captured >= 0.95 * answered
    assert cost <= MOST_COST


def test_a_thousand_requests_a_second_show_no_difference(pair: tuple[Running, Running, Path]) -> None:
    off, on, request = pair
    data = request.read_bytes()
    rounds: dict[int, list[float]] = {off.port: [], on.port: []}
    for _ in range(7):
        for port in (off.port, on.port):
            rounds[port].append(paced(port, data))
    without, with_capture = statistics.median(rounds[off.port]), statistics.median(rounds[on.port])
    spread = max(rounds[off.port]) - min(rounds[off.port])
    print(
        f"\nmedian latency at {RATE} requests/s: {without * 1e6:.0f} us without, {with_capture * 1e6:.0f} us"
        f" with capture; rounds without it lie within {spread * 1e6:.0f} us"
    )
    assert with_capture - without <= max(spread, 0.05 * without)


def paced(port: int, request: bytes) -> float:
    """Median latency in seconds of requests that are sent at a fixed rate over one connection."""
    latencies = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        for number in range(int(RATE * PACED_SECONDS)):
            while (now := time.perf_counter()) < begun + number / RATE:
                time.sleep(max(0.0, begun + number / RATE - now - 1e-4))
            connection.sendall(request)
            assert receive(connection)[9:12] == b"200"
            latencies.append(time.perf_counter() - now)
    return statistics.median(latencies)
