"""A steady load on a deployment, over kept and new connections, and what came of it."""

from __future__ import annotations

import collections
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import requests

REVISION = "x-mlflow-deploy-revision"
_CLIENTS = 4
# In a process of its own, because gRPC's threads do not go well with tests that start processes.
_GRPC = """
import collections, json, sys, threading
import numpy as np
import tritonclient.grpc as triton
address, name, clients, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
seen, stop = collections.Counter(), threading.Event()
def ask():
    client, asked = triton.InferenceServerClient(address), []
    for each in client.get_model_metadata(name).inputs:
        asked.append(triton.InferInput(each.name, [1] * len(each.shape), each.datatype))
        asked[-1].set_data_from_numpy(np.ones([1] * len(each.shape)))
    while not stop.wait(pause):
        try:
            key = "version " + client.infer(name, asked).get_response().model_version
        except triton.InferenceServerException as error:
            key = str(error)
        seen[key] += 1
threads = [threading.Thread(target=ask) for _ in range(clients)]
for each in threads: each.start()
sys.stdin.readline()
stop.set()
for each in threads: each.join()
print(json.dumps(seen))
"""


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
    url: str, rows: Any, *, rate: float = 0, clients: int = _CLIENTS, answers: list[Any] | None = None
) -> Iterator[collections.Counter[str]]:
    """Ask with the first row until the block ends; counts answers by status and by revision.

    Args:
        rows: a table, or a whole request body.
        answers: gets the predictions of each answer.
        rate: requests a second; 0 = as many as the clients get answered.
        clients: how many ask at once.
    """
    seen: collections.Counter[str] = collections.Counter()
    lock, stop = threading.Lock(), threading.Event()
    if isinstance(rows, dict):
        body = json.dumps(rows)
    else:
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
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                count(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            count(str(response.status), f"r{response.headers.get(REVISION)}")
            if answers is not None and response.status == 200:
                answers.append(json.loads(answer)["predictions"])
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


@contextmanager
def grpc_load(address: str, name: str, *, clients: int = 1, pause: float = 0.02) -> Iterator[dict[str, int]]:
    """Ask a deployment by gRPC, all inputs being 1, until the block ends.

    What came of it, by the version of the model or by error, is filled in then.

    Args:
        clients: how many ask at once.
        pause: seconds between the answer and the next question of each.
    """
    command = [sys.executable, "-c", _GRPC, address, name, str(clients), str(pause)]
    seen: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield seen
        finally:
            try:
                seen |= json.loads(process.communicate("\n", timeout=30)[0])
            finally:
                process.kill()
