"""Foreign clients of the Open Inference Protocol: tritonclient and KServe's, over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.integration.serving.bundles import COLUMNS
from tests.integration.serving.running import Running, running
from tests.integration.serving.zoo import Animal


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """gevent and protobuf warn about their own use in tritonclient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def towers(animals: dict[str, Animal], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("towers")
    with running(animals["two_towers"].bundle.path, folder, grpc=True) as process:
        yield process


@pytest.fixture(scope="module")
def words(animals: dict[str, Animal], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(animals["text"].bundle.path, tmp_path_factory.mktemp("words"), grpc=True) as process:
        yield process


def _table(animals: dict[str, Animal]) -> tuple[Any, list[int]]:
    animal = animals["doubles"]
    assert animal.table is not None
    example = animal.bundle.document("example.json")
    assert example is not None
    return animal.table, [0, 1, 1]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_http(
    server: Running, animals: dict[str, Animal], binary: bool, compression: str | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tritonclient.http as triton
    table, expected = _table(animals)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("zoo", "1")
    inputs = []
    for at, name in enumerate(COLUMNS):
        values = table[[name]].to_numpy("float64")
        values = values if at % 2 else values[:, 0]
        item = triton.InferInput(name, list(values.shape), "FP64")
        item.set_data_from_numpy(values, binary_data=binary)
        inputs.append(item)
    output = triton.InferRequestedOutput("predictions", binary_data=binary)
    answer = client.infer(
        "toy",
        inputs,
        outputs=[output],
        request_id="abc",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert answer.as_numpy("predictions").tolist() == expected
    assert answer.get_response()["id"] == "abc"
    client.close()


def test_triton_http_metadata(server: Running) -> None:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = client.get_model_metadata("toy")
    assert described["inputs"][0] == {"name": "c00", "datatype": "FP64", "shape": [-1]}
    assert described["outputs"] == [{"name": "predictions", "datatype": "INT64", "shape": [-1]}]
    assert client.get_model_repository_index()[0]["state"] == "READY"
    client.close()


def test_triton_grpc(server: Running, animals: dict[str, Animal]) -> None:
    import tritonclient.grpc as triton

    table, expected = _table(animals)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port + 1}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy", "1")
        assert client.get_server_metadata().name == "mlflow_deploy"
        assert [item.name for item in client.get_model_metadata("toy").inputs] == COLUMNS
        inputs = []
        for name in COLUMNS:
            item = triton.InferInput(name, [len(table)], "FP64")
            item.set_data_from_numpy(table[name].to_numpy("float64"))
            inputs.append(item)
        answer = client.infer("zoo", inputs, request_id="7")
        assert answer.as_numpy("predictions").tolist() == expected
        assert answer.get_response().id == "7"


def test_triton_grpc_tensors_and_typed_contents(towers: Running) -> None:
    import tritonclient.grpc as triton
    from tritonclient.grpc import service_pb2

    left, right = np.ones((2, 2), "float32"), np.full((2, 3), 2, "float32")
    with triton.InferenceServerClient(f"127.0.0.1:{towers.port + 1}") as client:
        inputs = []
        for name, array in (("left", left), ("right", right)):
            item = triton.InferInput(name, list(array.shape), "FP32")
            item.set_data_from_numpy(array)
            inputs.append(item)
        answer = client.infer("toy", inputs, outputs=[triton.InferRequestedOutput("twice")])
        assert answer.as_numpy("twice").tolist() == [28.0, 28.0]
        assert answer.as_numpy("total") is None
        request = service_pb2.ModelInferRequest(model_name="toy")
        for name, array in (("left", left), ("right", right)):
            added = request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            added.contents.fp32_contents.extend(array.ravel().tolist())
        typed = client._client_stub.ModelInfer(request)
        assert list(typed.outputs[0].contents.fp32_contents) == [14.0, 14.0]


def test_text_over_http_and_grpc(words: Running) -> None:
    import tritonclient.grpc
    import tritonclient.http

    texts = np.array(["good film", "awful bad work"], object)
    for triton, port in ((tritonclient.http, words.port), (tritonclient.grpc, words.port + 1)):
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        item = triton.InferInput("text", [2], "BYTES")
        item.set_data_from_numpy(texts)
        assert client.infer("toy", [item]).as_numpy("predictions").tolist() == [1, 0]
        client.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"shape": [3, 2]}, 400),
        ({"shape": [-1, 2]}, 400),
        ({"shape": [2**62, 2**62]}, 400),
        ({"shape": [2**70]}, 400),
        ({"shape": [1] * 40}, 400),
        ({"shape": "x"}, 400),
        ({"datatype": "INT64"}, 200),
        ({"datatype": "FP99"}, 400),
        ({"datatype": "BYTES"}, 400),
        ({"data": [1, "a", 2, 3]}, 400),
        ({"data": [[1, 2], [3]]}, 400),
        ({"data": [1, 2, 3]}, 400),
        ({"data": None}, 400),
        ({"data": {"a": 1}}, 400),
        ({"name": "middle"}, 400),
        ({"parameters": {"binary_data_size": 8}}, 400),
        ({"parameters": {"binary_data_size": -8}}, 400),
    ],
)
def test_bad_input_is_the_callers_fault(towers: Running, change: dict[str, Any], status: int) -> None:
    left = {"name": "left", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    right = {"name": "right", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    with towers.client() as client:
        answer = client.post("/v2/models/toy/infer", json={"inputs": [left | change, right]})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert set(answer.json()) == {"error"}


def test_binary_input_that_lies(towers: Running) -> None:
    head = b'{"inputs":[{"name":"left","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}'
    with towers.client() as client:
        for length, tail in (
            (len(head), b""),
            (len(head), b"1234567"),
            (len(head), b"123456789"),
            (5, b""),
            (9999, b""),
        ):
            answer = client.post(
                "/v2/models/toy/infer",
                content=head + tail,
                headers={"inference-header-content-length": str(length)},
            )
            assert answer.status_code == 400, answer.text
        assert client.post("/v2/models/nope/infer", json={}).status_code == 404
        assert client.post("/v2/models/toy/versions/2/infer", json={}).status_code == 404
        assert client.get("/v2/models/toy/infer").status_code == 405
        assert client.get("/v2/models/toy/versions/1/ready").json() == {"ready": True}
        assert client.get("/v2/models").json() == {"models": ["toy"]}


def test_grpc_refuses_what_is_wrong(towers: Running) -> None:
    import grpc
    import tritonclient.grpc as triton
    from tritonclient.grpc import service_pb2

    with triton.InferenceServerClient(f"127.0.0.1:{towers.port + 1}") as client:
        infer = client._client_stub.ModelInfer

        def code(**fields: Any) -> Any:
            with pytest.raises(grpc.RpcError) as caught:
                infer(service_pb2.ModelInferRequest(**fields))
            return caught.value.code()

        def tensor(**fields: Any) -> dict[str, Any]:
            return {"name": "left", "datatype": "FP32", "shape": [1, 2]} | fields

        assert code(model_name="nope") is grpc.StatusCode.NOT_FOUND
        assert code(model_name="toy") is grpc.StatusCode.INVALID_ARGUMENT
        for shape in ([2**62, 2**62], [-1], [3]):
            wrong = [tensor(shape=shape)]
            got = code(model_name="toy", inputs=wrong, raw_input_contents=[b"12345678"])
            assert got is grpc.StatusCode.INVALID_ARGUMENT
        assert code(model_name="toy", inputs=[tensor(datatype="FP16")]) is grpc.StatusCode.INVALID_ARGUMENT
        assert code(model_name="toy", raw_input_contents=[b"1"]) is grpc.StatusCode.INVALID_ARGUMENT


def test_nan_goes_in_and_out_as_json(towers: Running) -> None:
    body = (
        b'{"inputs":[{"name":"left","shape":[1,2],"datatype":"FP32","data":[NaN,1]},'
        b'{"name":"right","shape":[1,3],"datatype":"FP32","data":[0,0,0]}]}'
    )
    answer = httpx.post(f"{towers.url}/v2/models/toy/infer", content=body)
    assert answer.status_code == 200
    assert np.isnan(answer.json()["outputs"][0]["data"][0])
    assert Path(f"/proc/{towers.process.pid}").exists()


@pytest.mark.skipif("KSERVE_PYTHON" not in os.environ, reason="KSERVE_PYTHON names no Python with kserve")
def test_kserve(server: Running) -> None:
    """KServe's own clients, from elsewhere: its package takes no current psutil, httpx or starlette."""
    program = Path(__file__).with_name("kserve_client.py")
    command = [os.environ["KSERVE_PYTHON"], program, str(server.port), str(server.port + 1), "toy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found.pop("ready") == [True] * 5
    assert set(found) == {"json", "binary", "grpc typed", "grpc raw"}
    assert all(len(predictions) == 3 for predictions in found.values())
    assert len({tuple(predictions) for predictions in found.values()}) == 1
