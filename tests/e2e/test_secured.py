"""A deployment with TLS and tokens is made, watched and asked like any other."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import InvalidInput
from mlflow_deploy.gateway.spec import ANSWERED_BY_HEADER
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.serving.auth import add_token


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with the private authority that signed it in the same file, and its key."""
    authority_key, authority = _issue("authority", None, None)
    key, leaf = _issue("127.0.0.1", authority_key, authority)
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem = serialization.Encoding.PEM
    cert_file.write_bytes(leaf.public_bytes(pem) + authority.public_bytes(pem))
    key_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "authority.pem").write_bytes(authority.public_bytes(pem))
    return cert_file, key_file


def _issue(name: str, issuer_key: Any, issuer: x509.Certificate | None) -> tuple[Any, x509.Certificate]:
    """A key and a certificate; an authority when there is no issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return key, builder.sign(issuer_key or key, hashes.SHA256())


@pytest.fixture
def token(tmp_path: Path) -> tuple[Path, str]:
    """A token file and the token that it lets in."""
    path = tmp_path / "tokens.json"
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_deploy.serving.auth", str(path), "tests", "predict"],
        capture_output=True,
        text=True,
        check=True,
    )
    return path, done.stdout.split()[-1]


def test_token_and_certificate(
    home: Path,
    iris_models: str,
    iris_rows: Any,
    certificate: tuple[Path, Path],
    token: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    client = get_deploy_client("local")
    config = {
        "serving.auth": "token",
        "serving.auth_file": str(token[0]),
        "serving.tls_cert": str(certificate[0]),
        "serving.tls_key": str(certificate[1]),
    }
    deployment = client.create_deployment("d1", "models:/iris/1", config=config)
    assert deployment["url"].startswith("https://127.0.0.1:")
    assert deployment["status"] == "ready"
    with pytest.raises(InvalidInput, match="token"):
        client.predict("d1", iris_rows.head(2))
    monkeypatch.setenv("MLFLOW_DEPLOY_TOKEN", token[1])
    assert len(client.predict("d1", iris_rows.head(2))["predictions"]) == 2
    _labels_need_the_same_token(deployment["url"], token, tmp_path)
    labels = CaptureStore(home / "local/deployments/d1/data").labels()
    assert labels.select(["key", "label"]).to_pylist() == [{"key": "a", "label": 1}]


def _labels_need_the_same_token(url: str, token: tuple[Path, str], tmp_path: Path) -> None:
    """Through the gateway, which speaks TLS too."""
    scraper = add_token(token[0], "scraper", ("metrics",))
    answers = {}
    for name, given in {"none": "", "another": scraper, "right": token[1]}.items():
        answers[name] = requests.post(
            f"{url}/feedback",
            json={"request_id": "a", "label": 1},
            headers={"Authorization": f"Bearer {given}"} if given else {},
            verify=str(tmp_path / "authority.pem"),
            timeout=60,
        )
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "none": 401, "another": 403, "right": 200,
    }  # fmt: skip
    assert answers["right"].json() == {"accepted": 1}
    # Only the gateway says which revision answered.
    assert {answer.headers[ANSWERED_BY_HEADER] for answer in answers.values()} == {"1"}


def test_client_certificate(
    home: Path,
    iris_models: str,
    iris_rows: Any,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    client = get_deploy_client("local")
    config = {
        "gateway": "none",
        "serving.tls_cert": str(certificate[0]),
        "serving.tls_key": str(certificate[1]),
        "serving.tls_client_ca": str(tmp_path / "authority.pem"),
    }
    for _ in range(2):
        # The second time is an update, where both revisions share the port.
        if client.list_deployments():
            client.update_deployment("d1", config={"serving.threads": "1"})
        else:
            client.create_deployment("d1", "models:/iris/1", config=config)
        assert client.get_deployment("d1")["status"] == "ready"
    assert client.get_deployment("d1")["revision"] == 2
    both = tmp_path / "both.pem"
    both.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())
    monkeypatch.setenv("MLFLOW_DEPLOY_CLIENT_CERT", str(both))
    assert len(client.predict("d1", iris_rows.head(2))["predictions"]) == 2
