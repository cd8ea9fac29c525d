"""Keys that wrap the data key of a sealed file: RSA pairs and 256-bit secrets, and where they come from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shlex
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.files import write_atomic
from mlflow_deploy.security.errors import KeyUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

KEY_VARIABLE = "MLFLOW_DEPLOY_SEAL_KEY"
"""Environment variable that names the key source when nothing else does; it never holds a key itself."""

RSA = "rsa-oaep-sha256"
SECRET = "aes-256-kw"  # noqa: S105 - the name of an algorithm
RSA_BITS = 3072
_LEAST_RSA_BITS = 2048
_SECRET_BYTES = 32
_COMMAND_SECONDS = 60


class WrapFailedError(Exception):
    """The wrapped key is not one that this key made."""


@dataclass(frozen=True)
class Key:
    """A key that wraps data keys, and unwraps them unless it is a public one.

    Attributes:
        public: half of an RSA pair that wraps; None for a secret.
        private: half of an RSA pair that unwraps; None when it is not at hand.
        secret: 32 bytes that wrap and unwrap by AES key wrap (RFC 3394); empty for an RSA key.
    """

    public: RSAPublicKey | None = None
    private: RSAPrivateKey | None = None
    secret: bytes = b""

    def __repr__(self) -> str:
        return f"Key({self.id})"

    @property
    def kind(self) -> str:
        """How it wraps: `rsa-oaep-sha256` or `aes-256-kw`."""
        return RSA if self.public is not None else SECRET

    @cached_property
    def id(self) -> str:
        """`<kind>:<32 hexadecimal digits>`: names the key without telling anything of a secret."""
        if self.public is not None:
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            encoded = self.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        else:
            encoded = b"mlflow-deploy key id\0" + self.secret
        return f"{self.kind}:{hashlib.sha256(encoded).hexdigest()[:32]}"

    def wrap(self, data_key: bytes) -> bytes:
        """The data key encrypted for this key."""
        if self.public is not None:
            return self.public.encrypt(data_key, _oaep())
        from cryptography.hazmat.primitives.keywrap import aes_key_wrap

        return aes_key_wrap(self.secret, data_key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key in `wrapped`.

        Raises:
            WrapFailedError: it was changed, or another key made it.
            KeyUnavailable: this is a public key only.
        """
        if self.public is not None:
            if self.private is None:
                raise KeyUnavailable("", "it is a public key, which only seals", "Give the private key")
            try:
                return self.private.decrypt(wrapped, _oaep())
            except ValueError as error:
                raise WrapFailedError from error
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

        try:
            return aes_key_unwrap(self.secret, wrapped)
        except (InvalidUnwrap, ValueError) as error:
            raise WrapFailedError from error


def read_key(source: str = "") -> Key:
    """The key at a source.

    Args:
        source: `file:PATH`, `env:NAME` or `command:PROGRAM ARGUMENTS` (run without a shell; its output is the
            key); empty means the source that the environment variable `MLFLOW_DEPLOY_SEAL_KEY` names. The key
            is an RSA key in PEM form, or 32 bytes: raw, as 64 hexadecimal digits or in base64.

    Raises:
        KeyUnavailable: nothing is there, or it is no key.
        MissingExtra: the package cryptography is not installed.
    """
    if not source:
        source = os.environ.get(KEY_VARIABLE, "")
        if not source:
            raise KeyUnavailable(
                "",
                "no key was named",
                f"Name it with -C serving.seal_key=file:PATH, or in the environment variable {KEY_VARIABLE}",
            )
    return _parse(source, _fetch(source))


def _fetch(source: str) -> bytes:
    kind, _, place = source.partition(":")
    if kind == "file" and place:
        try:
            return Path(place).expanduser().read_bytes()
        except OSError as error:
            raise KeyUnavailable(source, error.strerror or str(error)) from error
    if kind == "env" and place:
        if place not in os.environ:
            raise KeyUnavailable(source, f"this process has no environment variable {place}")
        return os.environb[os.fsencode(place)]
    if kind == "command" and place:
        return _run(source, place)
    # A key typed in place of a source must not come back in a message.
    raise KeyUnavailable("", "its source begins with none of file:, env: and command:")


def _run(source: str, command: str) -> bytes:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise KeyUnavailable(source, f"the command cannot be run: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[:300]
        raise KeyUnavailable(source, f"the command ended with status {done.returncode}: {said}")
    return done.stdout


def _parse(source: str, content: bytes) -> Key:
    if content.lstrip().startswith(b"-----BEGIN"):
        return _parse_pem(source, content)
    if len(content) == _SECRET_BYTES:
        return Key(secret=content)
    text = content.strip()
    for decode in (binascii.unhexlify, _base64):
        try:
            secret = decode(text)
        except (binascii.Error, ValueError):
            continue
        if len(secret) == _SECRET_BYTES:
            return Key(secret=secret)
    raise KeyUnavailable(
        source,
        "it holds neither an RSA key in PEM form nor 32 bytes",
        "Make one with: mlflow-deploy keys new",
    )


def _base64(text: bytes) -> bytes:
    return base64.b64decode(text, validate=True)


def _parse_pem(source: str, pem: bytes) -> Key:
    rsa = _rsa()
    from cryptography.hazmat.primitives import serialization

    private: Any = None
    try:
        if b"PRIVATE KEY" in pem.splitlines()[0]:
            private = serialization.load_pem_private_key(pem, password=None)
            public: Any = private.public_key()
        else:
            public = serialization.load_pem_public_key(pem)
    except TypeError as error:
        hint = "Decrypt it on the way: command:openssl pkey -in FILE -passin env:NAME"
        raise KeyUnavailable(source, "it is protected by a passphrase", hint) from error
    except Exception as error:  # the parser's errors differ by format and version; all mean the same here
        raise KeyUnavailable(source, "it is not a readable key in PEM form") from error
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < _LEAST_RSA_BITS:
        raise KeyUnavailable(source, f"it is not an RSA key of at least {_LEAST_RSA_BITS} bits")
    return Key(public=public, private=private)


# --- new keys ----------------------------------------------------------------------------------------------


def new_pair(private_path: Path, public_path: Path) -> Key:
    """Make an RSA pair of 3072 bits and write it in PEM form; the private file is readable by its owner only.

    Raises:
        FileExistsError: one of the files is there; a key is never overwritten.
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    _refuse_overwrite(private_path, public_path)
    private = _rsa().generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    public = private.public_key()
    write_atomic(private_path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_atomic(
        public_path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644
    )
    return Key(public=public, private=private)


def new_secret(path: Path) -> Key:
    """Make a 256-bit secret and write it as base64, readable by its owner only.

    Raises:
        FileExistsError: the file is there; a key is never overwritten.
    """
    _refuse_overwrite(path)
    secret = os.urandom(_SECRET_BYTES)
    write_atomic(path, base64.b64encode(secret) + b"\n")
    return Key(secret=secret)


def _refuse_overwrite(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists; a key is never overwritten")


def _rsa() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import rsa
    except ModuleNotFoundError as error:
        raise MissingExtra("Sealing", "sealed", missing="cryptography") from error
    return rsa


def _oaep() -> Any:
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.hashes import SHA256

    return padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
