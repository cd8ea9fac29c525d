"""Keys and where they come from."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mlflow_deploy.security.errors import KeyUnavailable
from mlflow_deploy.security.keys import KEY_VARIABLE, Key, new_pair, new_secret, read_key


def test_pair_is_read_from_file_environment_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    made = new_pair(private, public)
    monkeypatch.setenv("THE_KEY", private.read_text())
    monkeypatch.setenv(KEY_VARIABLE, f"file:{private}")
    for source in (f"file:{private}", "env:THE_KEY", f"command:cat '{private}'", ""):
        key = read_key(source)
        assert key.id == made.id
        assert key.private is not None
    assert read_key(f"file:{public}").id == made.id
    assert read_key(f"file:{public}").private is None
    assert private.stat().st_mode & 0o077 == 0


def test_secret_is_read_raw_in_hex_and_in_base64(tmp_path: Path) -> None:
    secret = os.urandom(32)
    forms = {"raw": secret, "hex": secret.hex().encode() + b"\n", "base64": base64.b64encode(secret) + b"\n"}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        assert read_key(f"file:{tmp_path / name}") == Key(secret=secret)
    made = new_secret(tmp_path / "new")
    assert read_key(f"file:{tmp_path / 'new'}") == made
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("precious")
    with pytest.raises(FileExistsError):
        new_secret(tmp_path / "key")
    with pytest.raises(FileExistsError):
        new_pair(tmp_path / "private", tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_never_shows_in_messages_and_representations(tmp_path: Path) -> None:
    typed = "0123456789abcdef" * 4
    with pytest.raises(KeyUnavailable) as caught:
        read_key(typed)
    assert typed not in str(caught.value)
    key = Key(secret=bytes.fromhex(typed))
    assert typed not in repr(key)
    assert repr(key.secret) not in repr(key)
    (tmp_path / "short").write_text("too short a secret")
    with pytest.raises(KeyUnavailable) as caught:
        read_key(f"file:{tmp_path / 'short'}")
    assert "too short" not in str(caught.value)


def pem_of(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, passphrase: bytes = b"") -> bytes:
    protection = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "not an RSA key of at least 2048"),
        (pem_of(rsa.generate_private_key(65537, 1024)), "not an RSA key of at least 2048"),
        (pem_of(rsa.generate_private_key(65537, 2048), b"word"), "passphrase"),
        (b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n", "not a readable key"),
        (b"", "neither an RSA key"),
    ],
    ids=["elliptic", "weak", "protected", "nonsense", "empty"],
)
def test_unusable_keys_are_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(KeyUnavailable, match=why):
        read_key(f"file:{tmp_path / 'key'}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("file:/nowhere/key", "No such file"),
        ("env:NO_SUCH_VARIABLE", "no environment variable NO_SUCH_VARIABLE"),
        ("command:no-such-program-at-all", "cannot be run"),
        ("command:sh -c 'echo denied >&2; exit 3'", "status 3: denied"),
        ("", "no key was named"),
    ],
)
def test_sources_without_a_key_say_why(source: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(KeyUnavailable, match=why):
        read_key(source)
