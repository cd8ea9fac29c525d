"""One address for HTTP/1.0, HTTP/1.1, HTTP/2 and gRPC, with and without TLS."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mlflow_deploy.gateway.spec import Backend, Mirror, Replica, Sticky, Traffic
from tests.integration.gateway.running import backend, running, within
from tests.integration.gateway.toy import Toy
from tests.waiting import eventually

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@contextmanager
def grpc_server(name: str) -> Iterator[tuple[int, list[bytes]]]:
    """A gRPC server that answers its name, and fails as the request says: `fail:STATUS`."""
    seen: list[bytes] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(request)
        if request.startswith(b"fail:"):
            context.abort(getattr(grpc.StatusCode, request[5:].decode()), "as asked")
        if request == b"slow":
            time.sleep(0.05)
        return name.encode()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(8), handlers=[Handler()], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, seen
    finally:
        server.stop(None).wait()


def call(port: int, body: bytes = b"x", **metadata: str) -> tuple[str, str]:
    """The answer and the revision that gave it; a failure is (status, message)."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(METHOD)
        try:
            found, info = method.with_call(body, metadata=tuple(metadata.items()), timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        headers = dict(info.initial_metadata())
        return found.decode(), headers["x-mlflow-deploy-revision"]


def test_grpc_and_http_share_the_address(tmp_path: Path, toys: list[Toy]) -> None:
    with grpc_server("g-one") as (one, _), grpc_server("g-two") as (two, seen):
        backends = [
            Backend(revision=1, replicas=(Replica("127.0.0.1", toys[0].port, one),)),
            Backend(revision=2, replicas=(Replica("127.0.0.1", toys[1].port, two),)),
        ]
        with running(tmp_path, backends, Traffic({1: 75, 2: 25}), rate_limit=10_000) as gateway:
            with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
                method = channel.unary_unary(METHOD)
                found = Counter(method(b"x").decode() for _ in range(400))
            assert within(found["g-two"], 400, 0.25)
            assert found.total() == 400
            assert gateway.call()[0] == 200
            assert call(gateway.port, **{"x-revision": "2"}) == ("g-two", "2")
            status, message = call(gateway.port, **{"x-revision": "9"})
            assert status == "UNIMPLEMENTED"
            assert message == "The header X-Revision names a revision that does not run; there are: 1, 2"
            assert call(gateway.port, b"fail:INVALID_ARGUMENT", **{"x-revision": "2"}) == (
                "INVALID_ARGUMENT",
                "as asked",
            )
            assert call(gateway.port, b"fail:INTERNAL", **{"x-revision": "2"})[0] == "INTERNAL"
            large = b"x" * 3_000_000
            assert call(gateway.port, large, **{"x-revision": "2"}) == ("g-two", "2")
            assert large in seen
            served = gateway.gateway.stats()[2].served
            expected = (
                found["g-two"] + 4 + (gateway.gateway.stats()[1].served.requests == found["g-one"]),
                1,
                1,
            )
            assert (served.requests, served.client_errors, served.server_errors) == expected
            # Moves under a client that keeps its connection.
            with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
                method = channel.unary_unary(METHOD)
                method(b"x")
                gateway.gateway.apply(backends, Traffic({2: 100}))
                assert {method(b"x") for _ in range(20)} == {b"g-two"}
                gateway.gateway.apply(backends[1:], Traffic({2: 100}))
                assert {method(b"x") for _ in range(20)} == {b"g-two"}


def test_grpc_failures_of_the_gateway(tmp_path: Path, toys: list[Toy]) -> None:
    with grpc_server("g-one") as (one, _):
        backends = [Backend(revision=1, replicas=(Replica("127.0.0.1", toys[0].port, one),))]
        with running(tmp_path, backends, Traffic({1: 100}), request_timeout_seconds=0.02) as gateway:
            assert call(gateway.port, b"slow") == (
                "UNAVAILABLE",
                "The request took longer than the deployment allows",
            )
            gateway.gateway.apply([backend(1, toys[0].port)], Traffic({1: 100}))
            assert call(gateway.port) == ("UNIMPLEMENTED", "The deployment does not speak gRPC")


def test_grpc_is_mirrored(tmp_path: Path, toys: list[Toy]) -> None:
    with grpc_server("g-one") as (one, _), grpc_server("g-two") as (two, seen):
        backends = [
            Backend(revision=1, replicas=(Replica("127.0.0.1", toys[0].port, one),)),
            Backend(revision=2, replicas=(Replica("127.0.0.1", toys[1].port, two),)),
        ]
        with running(tmp_path, backends, Traffic({1: 100}, Mirror(2))) as gateway:
            for number in range(20):
                assert call(gateway.port, f"{number}".encode()) == ("g-one", "1")
            eventually(lambda: len(seen) == 20)
            eventually(lambda: gateway.gateway.stats()[2].mirrored.requests == 20)
            assert gateway.gateway.stats()[1].served.requests == 20


def test_grpc_is_sticky(tmp_path: Path, toys: list[Toy]) -> None:
    with grpc_server("g-one") as (one, _), grpc_server("g-two") as (two, _):
        backends = [
            Backend(revision=1, replicas=(Replica("127.0.0.1", toys[0].port, one),)),
            Backend(revision=2, replicas=(Replica("127.0.0.1", toys[1].port, two),)),
        ]
        sticky = Sticky(by="header", name="x-user")
        with running(tmp_path, backends, Traffic({1: 50, 2: 50}), sticky=sticky) as gateway:
            for user in ("ann", "bob", "cem", "dan", "eva", "fay"):
                assert len({call(gateway.port, **{"x-user": user}) for _ in range(4)}) == 1


@contextmanager
def breaking_server() -> Iterator[tuple[int, list[int]]]:
    """A server that takes gRPC's connections and closes each when its first call has come."""
    calls: list[int] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                received = b""
                while b"breaking" not in received and (chunk := client.recv(65536)):
                    received += chunk
                calls.append(len(received))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1]), calls
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("repeatable", [(), ("/inference.GRPCInferenceService/",)])
def test_grpc_call_that_a_replica_broke(tmp_path: Path, toys: list[Toy], repeatable: tuple[str, ...]) -> None:
    with grpc_server("good") as (good, seen), breaking_server() as (bad, broken):
        replicas = (Replica("127.0.0.1", toys[0].port, good), Replica("127.0.0.1", toys[1].port, bad))
        backends = [Backend(revision=1, replicas=replicas)]
        with running(tmp_path, backends, Traffic({1: 100}), repeatable=repeatable) as gateway:
            answers = Counter(call(gateway.port, b"breaking")[0] for _ in range(12))
        assert broken
        if repeatable:
            assert answers == {"good": 12}
            assert len(seen) == 12
        else:
            # Each call reached one replica and no second one.
            assert answers == {"good": len(seen), "UNAVAILABLE": len(broken)}
            assert answers.total() == 12


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, private = folder / "cert.pem", folder / "key.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "toy")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, private


def test_tls_on_both_sides(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    toy = Toy("secure")
    toy.server.socket = context.wrap_socket(toy.server.socket, server_side=True)
    backends = [backend(1, toy.port, tls=True, tls_ca=str(cert))]
    options = {"tls_cert": str(cert), "tls_key": str(key)}
    with running(tmp_path, backends, Traffic({1: 100}), **options) as gateway:
        client = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=client, timeout=60)
        connection.request("POST", "/invocations", body=b"{}")
        assert connection.getresponse().read() == b'{"from": "secure", "size": 2}'
        connection.close()
        assert gateway.gateway.stats()[1].healthy == 1
    # Clients without a certificate are refused where one is asked for.
    with running(
        tmp_path / "mutual", backends, Traffic({1: 100}), tls_client_ca=str(cert), **options
    ) as gateway:
        client = ssl.create_default_context(cafile=str(cert))

        def ping() -> int:
            connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=client, timeout=60)
            try:
                connection.request("GET", "/ping")
                return connection.getresponse().status
            finally:
                connection.close()

        with pytest.raises((OSError, http.client.HTTPException)):
            ping()
        client.load_cert_chain(cert, key)
        assert ping() == 200
    toy.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2-prior-knowledge", "--http2"])
def test_http_versions(tmp_path: Path, toys: list[Toy], version: str) -> None:
    with running(tmp_path, [backend(1, toys[0].port)], Traffic({1: 100})) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/invocations"
        command = ["curl", "-sS", version, "--data", "{}", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == '{"from": "one", "size": 2}'


def test_replicas_by_dns_name(tmp_path: Path, toys: list[Toy]) -> None:
    backends = [Backend(revision=1, replicas=(Replica("localhost", toys[0].port),))]
    with running(tmp_path, backends, Traffic({1: 100})) as gateway:
        assert gateway.call()[2]["from"] == "one"
