"""The HTTP side of a running server: limits, content types, request ids, metrics, OpenAPI, tokens, TLS."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.auth import add_token
from tests.integration.serving.bundles import COLUMNS
from tests.integration.serving.running import Running, running
from tests.integration.serving.zoo import Animal
from tests.waiting import eventually

JSON = {"content-type": "application/json"}


@pytest.fixture
def request_body(doubles: Bundle) -> dict[str, Any]:
    example = doubles.document("example.json")
    assert example is not None
    body: dict[str, Any] = example["request"]
    return body


def test_predictions_and_version(server: Running, request_body: dict[str, Any], doubles: Bundle) -> None:
    with server.client() as client:
        assert client.post("/invocations", json=request_body).json() == {"predictions": [0]}
        version = client.get("/version").json()
        assert client.get("/ping").status_code == client.get("/health").status_code == 200
    assert version.pop("pid") > 0
    assert version == {
        "deployment": "toy",
        "revision": 3,
        "model_name": "zoo",
        "model_version": "1",
        "bundle": doubles.digest,
        "format": "onnx",
        "providers": ["CPUExecutionProvider"],
        "mlflow_deploy": "0.1.0",
    }


def test_unknown_addresses_and_methods(server: Running) -> None:
    with server.client() as client:
        assert client.get("/nothing").status_code == 404
        assert client.get("/nothing").json()["error_code"] == "ENDPOINT_NOT_FOUND"
        wrong = client.get("/invocations")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert client.delete("/ping").status_code == 405


@pytest.mark.parametrize(
    "content_type",
    ["application/octet-stream", "application/x-pickle", "application/vnd.bentoml+pickle", "text/html", "",
     "x" * 999,
     "multipart/form-data", "application/x-python-serialize", "application/json; charset=utf-16"],
)  # fmt: skip
def test_a_pickle_is_read_under_no_content_type(server: Running, content_type: str) -> None:
    import pickle

    with server.client() as client:
        answer = client.post(
            "/invocations", content=pickle.dumps({"a": 1}), headers={"content-type": content_type}
        )
        assert answer.status_code == 415
        for known in ("application/json", "text/csv", "application/vnd.apache.parquet"):
            answer = client.post(
                "/invocations", content=pickle.dumps({"a": 1}), headers={"content-type": known}
            )
            assert answer.status_code == 400


def test_bodies_over_the_limit(server: Running) -> None:
    big = b" " * 200_001
    with server.client() as client:
        assert client.post("/invocations", content=big, headers=JSON).status_code == 413
        # Chunked, so that only reading it shows its size.
        chunks = (b" " * 10_000 for _ in range(30))
        assert client.post("/invocations", content=chunks, headers=JSON).status_code == 413
        endless = (b" " * 10_000 for _ in range(5000))
        with contextlib.suppress(httpx.TransportError):  # cut off while it still sends
            assert client.post("/invocations", content=endless, headers=JSON).status_code == 413
        bomb = gzip.compress(b" " * 50_000_000)
        packed = {**JSON, "content-encoding": "gzip"}
        assert client.post("/invocations", content=bomb, headers=packed).status_code == 413
        assert client.post("/invocations", content=bomb[:-9], headers=packed).status_code == 413
        assert client.post("/invocations", content=b"no gzip", headers=packed).status_code == 400
        other = {**JSON, "content-encoding": "br"}
        assert client.post("/invocations", content=b"x", headers=other).status_code == 415


def test_compressed_and_chunked_bodies(server: Running, request_body: dict[str, Any]) -> None:
    body = httpx.Request("POST", "http://x", json=request_body).content
    with server.client() as client:
        packed = client.post(
            "/invocations", content=gzip.compress(body), headers={**JSON, "content-encoding": "gzip"}
        )
        chunked = client.post("/invocations", content=iter([body[:50], body[50:]]), headers=JSON)
    assert packed.json() == chunked.json() == {"predictions": [0]}


def test_deep_and_odd_json(server: Running) -> None:
    bodies = [
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 50_000,
        b'{"a":' * 20_000,
        b"\x00",
        b"\xff\xfe",
        b'"' * 1000,
    ]
    bodies.append(b'{"dataframe_split": {"columns": [[]], "data": [[1]]}}')
    bodies.append(b'{"dataframe_split": {"columns": ["c00", "c00"], "data": [[1, 1]]}}')
    with server.client() as client:
        for body in bodies:
            answer = client.post("/invocations", content=body, headers=JSON)
            assert answer.status_code == 400, body[:20]
            assert "Traceback" not in answer.text


def test_request_ids(server: Running) -> None:
    with server.client() as client:
        assert client.get("/ping", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = {client.get("/ping").headers["x-request-id"] for _ in range(5)}
        assert len(made) == 5
        assert client.get("/ping", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_access_log_has_the_trace(server: Running, request_body: dict[str, Any]) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with server.client() as client:
        client.post(
            "/invocations", json=request_body, headers={"traceparent": trace, "x-request-id": "traced"}
        )
    lines = [line for line in server.lines() if line.get("request_id") == "traced"]
    assert [line["traceparent"] for line in lines] == [trace]


def test_metrics_add_up_over_workers(doubles: Bundle, request_body: dict[str, Any], tmp_path: Path) -> None:
    with running(doubles.path, tmp_path, workers=2) as server:
        ready = 0
        while ready < 30:  # the one worker answers while the other one still loads
            with server.client() as client:
                ready = ready + 1 if client.get("/ping").status_code == 200 else 0
        pids = set()
        for _ in range(60):
            with server.client() as client:  # a connection each, so that both workers get some
                assert client.post("/invocations", json=request_body).status_code == 200
                pids.add(client.get("/version").json()["pid"])
        assert len(pids) == 2
        counted = 'mlflow_deploy_requests_total{protocol="mlflow",status="200"} 60.0'
        with server.client() as client:
            # Each worker counts a few times a second.
            eventually(lambda: counted in client.get("/metrics").text)
            for _ in range(4):
                text = client.get("/metrics").text
                assert counted in text
        assert 'mlflow_deploy_request_seconds_bucket{le="+Inf",protocol="mlflow"} 60.0' in text
        assert "mlflow_deploy_rows_total 62.0" in text or "mlflow_deploy_rows_total 60.0" in text
        assert 'deployment="toy"' in text
        assert text.count("process_resident_memory_bytes{") == 3


def test_the_models_exception_is_a_500_without_its_story(animals: dict[str, Animal], tmp_path: Path) -> None:
    with running(animals["raising"].bundle.path, tmp_path) as server:
        with server.client() as client:
            body = {"dataframe_records": [{"secret": -4321.5}]}
            answer = client.post("/invocations", json=body, headers={"x-request-id": "bad"})
        assert answer.status_code == 500
        assert answer.json()["error_code"] == "INTERNAL_ERROR"
        assert "4321.5" not in answer.text
        (line,) = [line for line in server.lines() if line.get("request_id") == "bad"]
        assert "ValueError: cannot take [-4321.5]" in line["traceback"]


def test_openapi_and_page(server: Running) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
        page = client.get("/")
    body = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    assert document["openapi"] == "3.1.0"
    assert body["schema"]["anyOf"][0]["properties"]["dataframe_split"]["properties"]["columns"] == {
        "enum": [COLUMNS]
    }
    assert body["example"]["dataframe_split"]["columns"] == COLUMNS
    assert page.headers["content-type"].startswith("text/html")
    assert "<h1>toy</h1>" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_slow_senders_do_not_stop_the_others(server: Running) -> None:
    slow = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 1000\r\n\r\n{")
        slow.append(connection)
    with server.client() as client:
        assert client.get("/ping").status_code == 200
    for connection in slow:
        connection.close()


# --- tokens and TLS ------------------------------------------------------------------------------------------


def test_tokens(doubles: Bundle, request_body: dict[str, Any], tmp_path: Path) -> None:
    import grpc

    file = tmp_path / "tokens.json"
    predict = add_token(file, "caller", ("predict",))
    scrape = add_token(file, "prometheus", ("metrics",))
    assert predict not in file.read_text()
    with running(doubles.path, tmp_path, auth="token", auth_file=str(file), grpc=True) as server:
        with server.client() as client:

            def status(token: str | None, method: str, path: str, **body: Any) -> int:
                headers = {"authorization": f"Bearer {token}"} if token is not None else {}
                return client.request(method, path, headers=headers, **body).status_code

            assert client.get("/ping").status_code == 200
            assert status(None, "POST", "/invocations", json=request_body) == 401
            assert status("wrong", "POST", "/invocations", json=request_body) == 401
            assert status(scrape, "POST", "/invocations", json=request_body) == 403
            assert status(predict, "POST", "/invocations", json=request_body) == 200
            assert status(predict, "GET", "/metrics") == 403
            assert status(scrape, "GET", "/metrics") == 200
            assert status(None, "POST", "/v2/models/toy/infer", json={}) == 401
            assert "www-authenticate" in client.post("/invocations").headers
            # Rotation: a new token for the same holder replaces the old one, without a restart.
            renewed = add_token(file, "caller", ("predict",))
            assert status(predict, "POST", "/invocations", json=request_body) == 401
            assert status(renewed, "POST", "/invocations", json=request_body) == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.port + 1}") as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                infer(b"")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:
                infer(b"", metadata=[("authorization", f"Bearer {renewed}")])
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate authority, and a server's and a client's certificate of it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    paths: dict[str, Path] = {}

    def make(name: str, issuer: Any = None, signer: Any = None) -> Any:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        )
        if issuer is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
            )
        certificate = builder.sign(signer or key, hashes.SHA256())
        paths[f"{name}.crt"], paths[f"{name}.key"] = folder / f"{name}.crt", folder / f"{name}.key"
        paths[f"{name}.crt"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[f"{name}.key"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return subject, key

    authority, authority_key = make("ca")
    make("server", authority, authority_key)
    make("client", authority, authority_key)
    return paths


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(
    doubles: Bundle, request_body: dict[str, Any], tmp_path: Path, certificates: dict[str, Path], mutual: bool
) -> None:
    from tests.integration.serving.running import spawn

    settings = {"tls_cert": str(certificates["server.crt"]), "tls_key": str(certificates["server.key"])}
    if mutual:
        settings["tls_client_ca"] = str(certificates["ca.crt"])
    server = spawn(doubles.path, tmp_path, **settings)
    url = f"https://localhost:{server.port}"
    trust = ssl.create_default_context(cafile=str(certificates["ca.crt"]))
    try:
        if mutual:
            trust.load_cert_chain(certificates["client.crt"], certificates["client.key"])
        with httpx.Client(base_url=url, verify=trust, timeout=60) as client:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                try:
                    if client.get("/ping").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.05)
            assert client.post("/invocations", json=request_body).json() == {"predictions": [0]}
        if mutual:
            plain = ssl.create_default_context(cafile=str(certificates["ca.crt"]))
            with httpx.Client(base_url=url, verify=plain) as client, pytest.raises(httpx.TransportError):
                client.get("/ping")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/ping")
    finally:
        assert server.stop() == 0


# --- micro-batching ------------------------------------------------------------------------------------------


def test_batched_answers_are_the_callers_own(animals: dict[str, Animal], tmp_path: Path) -> None:
    animal = animals["tensors"]
    rows = [[float(at % 7) - 3 + column / 30 for column in range(30)] for at in range(60)]
    with running(animal.bundle.path, tmp_path) as plain, plain.client() as client:
        expected = client.post("/invocations", json={"inputs": rows}).json()["predictions"]
    batching = {"max_batch_size": 16, "max_batch_delay_ms": 5.0, "threads": 1}
    with running(animal.bundle.path, tmp_path, **batching) as server:
        got: dict[int, Any] = {}

        def ask(start: int) -> None:
            with server.client() as client:
                for at in range(start, 60, 6):
                    if at % 5 == 4:  # a bad request in the batch fails alone
                        answer = client.post("/invocations", json={"inputs": [[None] * 30]})
                        assert answer.status_code == 400
                    answer = client.post("/invocations", json={"inputs": [rows[at]]})
                    got[at] = answer.json()["predictions"][0]

        asking = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert [got[at] for at in range(60)] == expected
        with server.client() as client:
            text = client.get("/metrics").text
    calls = float(text.split("mlflow_deploy_batch_rows_count ")[1].split()[0])
    assert calls < 55
    assert "mlflow_deploy_batch_rows_sum 60.0" in text
