"""What sealing and reading pickles can fail with: one class per thing a user can do about it."""

from __future__ import annotations

from collections.abc import Iterable

from mlflow_deploy.errors import DeployError


class SealError(DeployError):
    """A sealed file cannot be made or opened."""

    code = "SEAL_FAILED"
    mlflow_code = "BAD_REQUEST"


class KeyUnavailable(SealError):
    """A key source gives nothing that can be used as a key; the message never holds what it gave."""

    code = "SEAL_KEY_UNAVAILABLE"

    def __init__(self, source: str, why: str, hint: str = "") -> None:
        super().__init__(
            f"The key {source or 'of the sealed model'} cannot be had",
            why=why,
            hint=hint or "Name it as file:PATH, env:NAME or command:PROGRAM ARGUMENTS",
        )


class WrongKey(SealError):
    """The key is not one of those that the file was sealed for."""

    code = "SEAL_WRONG_KEY"
    mlflow_code = "PERMISSION_DENIED"

    def __init__(self, name: str, key: str, wanted: Iterable[str]) -> None:
        super().__init__(
            f"{name} was sealed for another key",
            why=f"the given key is {key}, it opens with {' or '.join(wanted) or 'none'}",
            hint="Give the key whose id `mlflow-deploy keys show` prints for it",
        )


class SealTruncated(SealError):
    """The file ends before its content does."""

    code = "SEAL_TRUNCATED"
    mlflow_code = "DATA_LOSS"

    def __init__(self, name: str, have: int, want: int) -> None:
        super().__init__(
            f"{name} is cut off",
            why=f"it has {have} bytes, its header promises at least {want}",
            hint="Copy or download it again; nothing of it was used",
        )


class SealTampered(SealError):
    """A part of the file is not what was sealed: flipped bits, moved or repeated chunks, another header."""

    code = "SEAL_TAMPERED"
    mlflow_code = "DATA_LOSS"

    def __init__(self, name: str, where: str) -> None:
        super().__init__(
            f"{name} was changed after it was sealed",
            why=f"{where} is not authentic",
            hint="Do not use it; take it from a trusted place again",
        )


class NotSealed(SealError):
    """The file is no sealed file, or one of a later version."""

    code = "SEAL_UNREADABLE"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} is not a sealed file that this version reads", why=why)


class PickleUnreadable(DeployError):
    """A pickle cannot be read to its end, so what it imports is not known."""

    code = "PICKLE_UNREADABLE"
    mlflow_code = "BAD_REQUEST"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"The pickle {name} cannot be read to its end",
            why=why,
            hint="Treat it as unknown: do not load it unless you made it yourself",
        )
