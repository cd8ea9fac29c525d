"""A steady load on a deployment, over kept and new connections, and what came of it."""

from __future__ import annotations

import collections
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import requests

REVISION = "x-mlflow-deploy-revision"
_CLIENTS = 4


def quiet(_line: str) -> None:
    """Show no progress."""


def failed(seen: collections.Counter[str]) -> dict[str, int]:
    """Answers other than 200."""
    return {what: count for what, count in seen.items() if what != "200" and not what.startswith("r")}


def forced(url: str, rows: Any, revision: int) -> tuple[int, str | None]:
    """Status and answering revision of a request that asks for a revision."""
    body = {"dataframe_split": {"columns": list(rows.columns), "data": rows.head(1).to_numpy().tolist()}}
    response = requests.post(
        f"{url}/invocations", json=body, headers={"X-Revision": str(revision)}, timeout=5
    )
    return response.status_code, response.headers.get(REVISION)


@contextmanager
def load(
    url: str, rows: Any, *, rate: float = 0, clients: int = _CLIENTS
) -> Iterator[collections.Counter[str]]:
    """Ask with the first row until the block ends; counts answers by status and by revision.

    Args:
        rate: requests a second; 0 = as many as the clients get answered.
        clients: how many ask at once.
    """
    seen: collections.Counter[str] = collections.Counter()
    lock, stop = threading.Lock(), threading.Event()
    split = {"columns": list(rows.columns), "data": rows.head(1).to_numpy().tolist()}
    body = json.dumps({"dataframe_split": split})

    def count(*what: str) -> None:
        with lock:
            seen.update(what)

    def ask(keep: bool) -> None:
        due = time.monotonic()
        connection = http.client.HTTPConnection(urlparse(url).netloc, timeout=10)
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + clients / rate, time.monotonic() - 1) if rate else due
            try:
                connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                count(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            count(str(response.status), f"r{response.headers.get(REVISION)}")
            if not keep:
                connection.close()
        connection.close()

    # One of them makes a new connection for each request.
    threads = [threading.Thread(target=ask, args=(client > 0,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
