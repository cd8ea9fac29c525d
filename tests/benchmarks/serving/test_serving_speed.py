"""How fast and how small the server is, as ratios to MLflow's own server inside one interleaved run.

`pytest tests/benchmarks/serving -m benchmark -s` prints the table and fails below the bars. The servers run on
one core and the load generator on another. Throughput is counted per second of processor time that the server
used: on a core of its own that is the same as requests per second, and what else runs on the machine does not
move it. Of each server the best round counts, because noise only makes slower.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlflow_deploy.bundle import Bundle, Feed, Output
from tests.integration.serving import bundles
from tests.integration.serving.running import ROOT, Running, free_port, spawn, wait_ready, workers

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(600)]

SERVER, GENERATOR = 0, max(os.sched_getaffinity(0))
PIN = ("taskset", "-c", str(SERVER))
_SCRIPT = Path(__file__).with_name("wrk.lua")
RESULTS = ROOT / "docs" / "serving_speed.md"
WRK = shutil.which("wrk")
_TESTS = 5  # that report; a run of fewer writes no file
_ROWS: list[tuple[str, str, str, str]] = []
_REPORTED: set[str] = set()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the table at the end, and write it to the documentation when everything was measured."""
    if WRK is None:
        print("\nwrk is not installed: tests/benchmarks/serving/load.py makes the load, more slowly")
    yield
    lines = ["| measurement | result | bar | met |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in _ROWS]
    print("\n\n" + "\n".join(lines) + "\n\n`make bench-serving`")
    if len(_REPORTED) == _TESTS:
        generator = "wrk" if WRK else "tests/benchmarks/serving/load.py"
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        about = (
            f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores, load"
            f" from {generator}, load average at the end {load}. Requests/s are per second of the"
            " server's processor time."
        )
        RESULTS.write_text(
            "# How fast the scoring server is\n\nWritten by `make bench-serving`. " + about
            + "\n\n" + "\n".join(lines) + "\n"
        )  # fmt: skip


def report(what: str, result: str, bar: str, met: bool) -> None:
    """A line of the table; the test fails when the bar is not met."""
    _ROWS.append((what, result, bar, "yes" if met else "**no**"))
    _REPORTED.add(os.environ["PYTEST_CURRENT_TEST"])
    assert met, f"{what}: {result}, bar {bar}"


@dataclass
class Lane:
    """A server under load, and its results by number of connections."""

    name: str
    port: int
    request: Path
    pid: int
    results: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def rps(self, connections: int) -> float:
        """Requests per second of the server's processor time in the best round."""
        return max(result["per_cpu"] for result in self.results[connections])

    def p50(self, connections: int) -> float:
        """Median latency in milliseconds in the best round."""
        return min(result["p50"] for result in self.results[connections])


def measure(lanes: Sequence[Lane], connections: Sequence[int], *, rounds: int = 4, seconds: int = 1) -> None:
    """Load the lanes in turn."""
    for _ in range(rounds):
        for count in connections:
            for lane in lanes:
                before = _cpu_seconds(lane.pid)
                result = _load(lane, count, seconds)
                result["per_cpu"] = result["requests"] / (_cpu_seconds(lane.pid) - before)
                assert result["failed"] == 0, lane.name
                lane.results.setdefault(count, []).append(result)


def _load(lane: Lane, connections: int, seconds: int) -> dict[str, float]:
    """Load a server from the generator's core: requests, median latency in milliseconds, failed requests."""
    pin = ["taskset", "-c", str(GENERATOR)]
    if WRK is None:
        command = [*pin, sys.executable, "-m", "tests.benchmarks.serving.load"]
        command += [str(lane.port), str(connections), str(seconds), os.fspath(lane.request)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        result: dict[str, float] = json.loads(done.stdout)
        return result
    command = [*pin, WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", os.fspath(_SCRIPT)]
    command += ["--timeout", "20s", f"http://127.0.0.1:{lane.port}/"]
    environ = {**os.environ, "REQUEST": os.fspath(lane.request)}
    text = subprocess.run(command, env=environ, capture_output=True, check=True, text=True).stdout
    requests, median = re.search(r"(\d+) requests in", text), re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    assert requests is not None, text
    assert median is not None, text
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}[median[2]]
    bad = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    return {"requests": int(requests[1]), "p50": float(median[1]) * unit, "failed": bad}


def http_request(folder: Path, name: str, path: str, body: bytes, *headers: str) -> Path:
    """A file with the bytes of one request."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}", *headers]
    file = folder / f"{name}.request"
    file.write_bytes("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return file


def json_request(folder: Path, name: str, document: Any) -> Path:
    """A request to /invocations."""
    return http_request(
        folder, name, "/invocations", json.dumps(document).encode(), "Content-Type: application/json"
    )


def start_mlflow(model: Path, port: int) -> subprocess.Popen[bytes]:
    """MLflow's own scoring server as `mlflow models serve -w 1` starts it."""
    command = [
        *PIN,
        sys.executable,
        "-m",
        "uvicorn",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--log-level", "error", "mlflow.pyfunc.scoring_server.app:app"]
    environ = {**os.environ, "__pyfunc_model_path__": os.fspath(model)}
    return subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def start_echo(port: int) -> subprocess.Popen[bytes]:
    """The echo server."""
    command = [*PIN, sys.executable, "-m", "tests.benchmarks.serving.echo", str(port)]
    return subprocess.Popen(command, cwd=ROOT)


def wait_for(port: int, path: str = "/ping") -> None:
    """Wait until the port answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            httpx.get(f"http://127.0.0.1:{port}{path}")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"nothing answers on {port}")


class Fleet:
    """Servers that are stopped at the end of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def ours(self, bundle: Bundle, **serving: Any) -> Running:
        """Our server, ready."""
        server = wait_ready(spawn(bundle.path, self.folder, prefix=PIN, **serving))
        self._processes.append(server.process)
        return server

    def add(self, process: subprocess.Popen[bytes]) -> int:
        """Stop this one, too; returns its process id."""
        self._processes.append(process)
        return process.pid

    def stop(self) -> None:
        """Stop all."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Servers for one test."""
    servers = Fleet(tmp_path)
    yield servers
    servers.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Bundle]]:
    """Native model and bundle by name."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "boosting": bundles.boosting(tmp_path_factory.mktemp("boosting")),
            "linear": bundles.linear(tmp_path_factory.mktemp("linear")),
        }


def test_boosting_against_mlflow(models: dict[str, tuple[Path, Bundle]], fleet: Fleet) -> None:
    native, bundle = models["boosting"]
    table, _ = bundles.training_table()
    row = {"columns": list(table.columns), "data": table.head(1).to_numpy().tolist()}
    rows = {"columns": list(table.columns), "data": table.head(64).to_numpy().tolist()}
    one = json_request(fleet.folder, "one", {"dataframe_split": row})
    many = json_request(fleet.folder, "many", {"dataframe_split": rows})
    theirs, echo = free_port(), free_port()
    mlflow_pid = fleet.add(start_mlflow(native, theirs))
    echo_pid = fleet.add(start_echo(echo))
    ours = fleet.ours(bundle)
    our_pid = ours.process.pid
    wait_for(theirs)
    wait_for(echo, "/x")
    lanes = [
        Lane("MLflow", theirs, one, mlflow_pid),
        Lane("ours", ours.port, one, our_pid),
        Lane("echo", echo, one, echo_pid),
    ]
    measure(lanes, (16, 1))
    mlflow, server, floor = lanes
    large = [Lane("MLflow", theirs, many, mlflow_pid), Lane("ours", ours.port, many, our_pid)]
    measure(large, (4,), rounds=3)
    name = "StandardScaler + GradientBoosting, 30 doubles"
    checks = [
        (
            f"{name}, requests/s at 16 connections",
            server.rps(16),
            mlflow.rps(16),
            80,
            "{:,.0f}/s against {:,.0f}/s",
        ),
        (f"{name}, p50 at 1 connection", 1 / server.p50(1), 1 / mlflow.p50(1), 30, ""),
        (
            "the same, 64 rows per request, requests/s",
            large[1].rps(4),
            large[0].rps(4),
            10,
            "{:,.0f}/s against {:,.0f}/s",
        ),
    ]
    failed = []
    for what, mine, other, bar, text in checks:
        detail = text.format(mine, other) if text else f"{1 / mine:.3f} ms against {1 / other:.2f} ms"
        try:
            report(what, f"{mine / other:.0f}x ({detail})", f"at least {bar}x", mine / other >= bar)
        except AssertionError as error:
            failed.append(str(error))
    share = server.rps(16) / floor.rps(16)
    try:
        report(
            "share of the same HTTP server that parses and echoes",
            f"{share:.0%} ({server.rps(16):,.0f}/s of {floor.rps(16):,.0f}/s)",
            "at least 45 %",
            share >= 0.45,
        )
    except AssertionError as error:
        failed.append(str(error))
    assert not failed, failed


def test_linear_tensor_against_mlflow(models: dict[str, tuple[Path, Bundle]], fleet: Fleet) -> None:
    native, bundle = models["linear"]
    one = json_request(fleet.folder, "one", {"inputs": np.linspace(-2, 2, 30).reshape(1, 30).tolist()})
    theirs = free_port()
    mlflow_pid = fleet.add(start_mlflow(native, theirs))
    ours = fleet.ours(bundle)
    wait_for(theirs)
    lanes = [Lane("MLflow", theirs, one, mlflow_pid), Lane("ours", ours.port, one, ours.process.pid)]
    measure(lanes, (16,))
    ratio = lanes[1].rps(16) / lanes[0].rps(16)
    detail = f"{lanes[1].rps(16):,.0f}/s against {lanes[0].rps(16):,.0f}/s"
    report(
        "LogisticRegression, tensor `inputs`, requests/s",
        f"{ratio:.0f}x ({detail})",
        "at least 20x",
        ratio >= 20,
    )


def _perceptron(folder: Path) -> Bundle:
    """784-512-512-10 with ReLU, as ONNX."""
    import onnx

    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    sizes, last = (784, 512, 512, 10), "x"
    for at, (wide, high) in enumerate(itertools.pairwise(sizes)):
        for kind, shape in (("w", (wide, high)), ("b", (high,))):
            values = (rng.normal(size=shape) / np.sqrt(wide)).astype("float32")
            weights.append(onnx.numpy_helper.from_array(values, f"{kind}{at}"))
        final = at == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", f"b{at}"], ["y" if final else f"h{at}"]))
        if not final:
            nodes.append(helper.make_node("Relu", [f"h{at}"], [f"r{at}"]))
        last = f"r{at}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", number, ["n", 784])],
        [helper.make_tensor_value_info("y", number, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content = folder / "perceptron"
    content.mkdir()
    onnx.save(model, content / "model.onnx")
    return bundles.onnx_bundle(
        folder / "store",
        content,
        None,
        feeds=(Feed(name="x", dtype="float32", tensor="", shape=(-1, 784)),),
        outputs=(Output(name="y", dtype="float32"),),
    )


def _forest(folder: Path) -> Bundle:
    """Random forest of 100 trees on 30 floats, as ONNX."""
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import RandomForestClassifier

    table, target = bundles.training_table()
    model = RandomForestClassifier(100, random_state=0).fit(table.to_numpy(), target)
    content = bundles.to_onnx(
        model, [("X", FloatTensorType([None, 30]))], folder / "forest", options={"zipmap": False}
    )
    return bundles.onnx_bundle(
        folder / "store",
        content,
        None,
        feeds=(Feed(name="X", dtype="float32", tensor="", shape=(-1, 30)),),
        outputs=(Output(name="label", dtype="int64"),),
    )


def _binary_request(folder: Path, width: int) -> Path:
    raw = np.random.default_rng(1).normal(size=(1, width)).astype("float32").tobytes()
    inputs = [
        {
            "name": "inputs",
            "shape": [1, width],
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return http_request(folder, f"binary{width}", "/v2/models/toy/infer", head + raw, length)


@pytest.mark.parametrize(("model", "bar"), [("perceptron", 1.3), ("forest", 0.95)])
def test_micro_batching(fleet: Fleet, model: str, bar: float) -> None:
    bundle = _perceptron(fleet.folder) if model == "perceptron" else _forest(fleet.folder)
    request = _binary_request(fleet.folder, 784 if model == "perceptron" else 30)
    off = fleet.ours(bundle, threads=1)
    on = fleet.ours(bundle, threads=1, max_batch_size=32, max_batch_delay_ms=4.0)
    lanes = [Lane("off", off.port, request, off.process.pid), Lane("on", on.port, request, on.process.pid)]
    # Both at the same moment on the same core: in turn, what neighbours do makes equal servers differ twofold.
    with ThreadPoolExecutor(2) as pool:
        for _ in range(8):
            list(pool.map(lambda lane: measure([lane], [32], rounds=1, seconds=2), lanes))
    rates = [[each["per_cpu"] for each in lane.results[32]] for lane in lanes]
    ratio = statistics.median(on / off for off, on in zip(*rates, strict=True))
    without, with_batches = map(statistics.median, rates)
    detail = f"{with_batches:,.0f}/s against {without:,.0f}/s"
    what = {
        "perceptron": "MLP 784-512-512-10, binary tensors",
        "forest": "random forest, where batches do not pay",
    }
    report(
        f"micro-batching on against off: {what[model]}",
        f"{ratio:.2f}x ({detail})",
        f"at least {bar}x",
        ratio >= bar,
    )


def test_start_size_and_idleness(models: dict[str, tuple[Path, Bundle]], fleet: Fleet) -> None:
    bundle = models["boosting"][1]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        server = wait_ready(spawn(bundle.path, fleet.folder))
        times.append(time.perf_counter() - begun)
        server.stop()
    server = fleet.ours(bundle)
    pids = [server.process.pid, *workers(server)]
    with server.client() as client:
        example = bundle.document("example.json")
        assert example is not None
        for _ in range(200):
            client.post("/invocations", json=example["request"])
    pss = sum(_pss(pid) for pid in pids)
    before = _cpu_seconds(server.process.pid)
    time.sleep(5)
    busy = (_cpu_seconds(server.process.pid) - before) / 5
    report(
        "ready after process start, median of 5",
        f"{statistics.median(times):.2f} s",
        "under 1 s",
        statistics.median(times) < 1,
    )
    report("memory of server and one worker (PSS)", f"{pss:.0f} MiB", "under 130 MiB", pss < 130)
    report("processor when idle", f"{busy:.1%} of a core", "under 2 %", busy < 0.02)


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = {
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    }
    return own + sum(_cpu_seconds(child) for child in children)
