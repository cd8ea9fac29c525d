"""API tokens: hashed at rest, compared in constant time, bound to scopes, replaced without a restart.

The file holds one JSON object: {"tokens": [{"name": ..., "sha256": ..., "scopes": ["predict", ...]}, ...]}.
Write it with `python -m mlflow_deploy.serving.auth FILE NAME SCOPE...`, which prints the new token once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
from pathlib import Path

import msgspec

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.files import write_atomic
from mlflow_deploy.serving.errors import Forbidden, Unauthenticated
from mlflow_deploy.serving.logs import logger

SCOPES = ("predict", "metrics", "admin")
"""What a token may be for; `admin` includes the others."""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token: who it was given to, its SHA-256 in hexadecimal, and what it is for.

    A token is 256 random bits, so a fast hash is enough: there is nothing to guess from.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...] = ("predict",)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[Token]


class Guard:
    """Decides by the token file; a changed file is read again at the next request.

    Raises:
        ConfigError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._tokens = read_tokens(path)

    def check(self, header: str | None, scope: str) -> None:
        """Let a request with this Authorization header pass.

        Raises:
            Unauthenticated: the header names no known token.
            Forbidden: the token is not for this scope.
        """
        self._refresh()
        kind, _, given = (header or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).hexdigest()
        found: Token | None = None
        for token in self._tokens:
            # All tokens are compared, so that the time tells nothing about which one was close.
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None or kind.lower() != "bearer":
            raise Unauthenticated("This server wants a token", hint="Send `Authorization: Bearer TOKEN`")
        if scope not in found.scopes and "admin" not in found.scopes:
            raise Forbidden(f"This token is not for {scope}", hint=f"Ask for a token with the scope {scope}")

    def _stat(self) -> tuple[int, int, int]:
        try:
            state = self._path.stat()
        except OSError as error:
            raise ConfigError(f"The token file {self._path} cannot be read", why=str(error)) from error
        return state.st_mtime_ns, state.st_ino, state.st_size

    def _refresh(self) -> None:
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._tokens, self._stamp = read_tokens(self._path), stamp
        except ConfigError as error:
            # A file that is being replaced must not lock everybody out: the tokens known so far stay valid.
            logger().error("the token file cannot be read again", extra={"fields": {"error": error.text}})


def read_tokens(path: Path) -> list[Token]:
    """The tokens in a file.

    Raises:
        ConfigError: it cannot be read, or names an unknown scope.
    """
    try:
        tokens = msgspec.json.decode(path.read_bytes(), type=_File).tokens
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"The token file {path} cannot be read", why=str(error)) from error
    for token in tokens:
        unknown = set(token.scopes) - set(SCOPES)
        if unknown:
            raise ConfigError(
                f"Token {token.name!r} has the unknown scope {sorted(unknown)[0]!r}",
                hint=f"Use {', '.join(SCOPES)}",
            )
    return tokens


def add_token(path: Path, name: str, scopes: tuple[str, ...]) -> str:
    """Make a token, store its hash under `name` in place of an earlier one, and return the token.

    Raises:
        ConfigError: the file cannot be read, or a scope is unknown.
    """
    tokens = [token for token in read_tokens(path) if token.name != name] if path.exists() else []
    given = secrets.token_urlsafe(32)
    tokens.append(Token(name, hashlib.sha256(given.encode()).hexdigest(), scopes))
    write_atomic(path, msgspec.json.format(msgspec.json.encode(_File(tokens)), indent=1) + b"\n")
    read_tokens(path)
    return given


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python -m mlflow_deploy.serving.auth FILE NAME [{'|'.join(SCOPES)}]...")
    sys.stdout.write(
        add_token(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]) or ("predict",)) + os.linesep
    )
