"""Random requests never make a 5xx: hypothesis on the parsers, schemathesis on the OpenAPI document."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.serving.metrics import SharedMetrics
from mlflow_deploy.serving.recorder import SharedRecorder
from mlflow_deploy.serving.server import make_app
from mlflow_deploy.serving.worker import Launch, Worker
from tests.integration.serving.bundles import COLUMNS
from tests.integration.serving.running import Running
from tests.integration.serving.zoo import Animal

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
NAMES = ("doubles", "mixed", "tensors", "two_towers", "text")
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def clients(animals: dict[str, Animal]) -> dict[str, httpx.Client]:
    """A client of the application of each model, in this process."""
    made = {}
    for name in NAMES:
        config = parse_config({"deployment": "toy"})
        worker = Worker(Launch(animals[name].bundle, config, SharedMetrics(1), SharedRecorder(1)), 0)
        worker.load()
        made[name] = httpx.Client(transport=httpx.WSGITransport(app=make_app(worker)), base_url="http://app")
    return made


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["good film", "NaN", "1e999", "1.5", 2**63, 2**70, -0.0, "北京"])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
names = st.sampled_from(["age", "income", "city", "text", "left", "right", *COLUMNS[:3], "x", 0, None])
rows = st.lists(st.lists(values, max_size=4) | values, max_size=4)
splits = st.fixed_dictionaries(
    {"data": rows | values}, optional={"columns": st.lists(names, max_size=4) | values, "index": values}
)
records = st.lists(st.dictionaries(names.map(str), values, max_size=4) | values, max_size=4)
bodies = st.one_of(
    st.fixed_dictionaries({"dataframe_split": splits | values}, optional={"params": values}),
    st.fixed_dictionaries({"dataframe_records": records | values}),
    st.fixed_dictionaries({"inputs": records | rows | values}),
    st.fixed_dictionaries({"instances": records | rows | values}),
    values,
)


def _status(client: httpx.Client, path: str, content: bytes, **headers: str) -> int:
    answer = client.post(path, content=content, headers=headers)
    assert "Traceback" not in answer.text
    return answer.status_code


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_json_bodies(clients: dict[str, httpx.Client], name: str) -> None:
    @fuzz
    @given(bodies)
    @example({"dataframe_split": {"data": [[[]], []]}})
    def run(body: Any) -> None:
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        assert _status(clients[name], "/invocations", content, **{"content-type": "application/json"}) < 500

    run()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_raw_bodies(clients: dict[str, httpx.Client], name: str) -> None:
    types = st.sampled_from(["application/json", "text/csv", "application/vnd.apache.parquet", "a/b"])
    csv = st.lists(st.text(alphabet='abc,"\n1.-e北', max_size=30), max_size=4).map("\n".join).map(str.encode)

    @fuzz
    @given(st.binary(max_size=200) | csv, types)
    def run(content: bytes, content_type: str) -> None:
        assert _status(clients[name], "/invocations", content, **{"content-type": content_type}) < 500

    run()


tensor_shapes = (
    st.lists(st.integers(-3, 4) | st.sampled_from([2**31, 2**62, 2**64, 2**70]), max_size=4) | values
)
inputs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            ["left", "right", "inputs", "text", "age", "city", "income", *COLUMNS[:2], "x"]
        )
        | values,
        "shape": tensor_shapes,
        "datatype": st.sampled_from(["FP32", "FP64", "INT64", "UINT8", "BOOL", "BYTES", "FP16", "BF16", ""])
        | values,
    },
    optional={
        "data": values | st.lists(st.floats() | st.integers(), max_size=9),
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-2, 40), max_size=1) | values,
    },
)
queries = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=3) | values},
    optional={
        "id": values,
        "parameters": values,
        "outputs": st.lists(st.dictionaries(st.just("name"), values)) | values,
    },
)


def huge(datatype: str, rows: int) -> dict[str, Any]:
    """An input without elements whose shape no array can have."""
    return {
        "name": "left",
        "shape": [rows, 2**62],
        "datatype": datatype,
        "data": [],
        "parameters": {"binary_data_size": 0},
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infer_bodies(clients: dict[str, httpx.Client], name: str) -> None:
    @fuzz
    @given(queries, st.binary(max_size=40), st.booleans())
    @example({"inputs": [huge("FP32", 0)]}, b"", True)
    @example({"inputs": [huge("BYTES", 0)]}, b"", True)
    @example({"inputs": [huge("FP32", 0)]}, b"", False)
    def run(query: Any, tail: bytes, binary: bool) -> None:
        head = json.dumps(query).encode()
        headers = {"inference-header-content-length": str(len(head))} if binary else {}
        assert (
            _status(clients[name], "/v2/models/toy/infer", head + (tail if binary else b""), **headers) < 500
        )

    run()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_server_error(server: Running) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    # Each of its examples is a request to a real server, at each of several addresses.
    command += ["--max-examples", str(max(15, EXAMPLES // 20)), "--checks", "not_a_server_error"]
    command += ["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
