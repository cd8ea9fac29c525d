"""Sealed servables: opened in memory for the time that a back end needs to load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Bundle


@contextmanager
def in_the_clear(bundle: Bundle, key_source: str) -> Iterator[Bundle]:
    """The bundle with a servable that can be read: the same one, or a folder of links into memory.

    Args:
        key_source: where the key comes from, as `security.keys.read_key` takes it.

    Raises:
        SealError: there is no key, it is the wrong one, or the file was changed.
    """
    sealed = bundle.manifest.servable.sealed
    if not sealed:
        yield bundle
        return
    from mlflow_deploy.security.keys import read_key
    from mlflow_deploy.security.sealing import open_sealed

    with open_sealed(bundle.path / sealed, read_key(key_source)) as opened, opened.as_folder() as folder:
        for part in bundle.path.iterdir():
            if part.name != SERVABLE:
                (folder / part.name).symlink_to(part.absolute())
        yield structs.replace(bundle, path=folder)
