"""Real flights as requests: latency as a client sees it, and the ids by which labels find them later."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import msgspec
import numpy as np

from mlflow_deploy.errors import PredictionError

if TYPE_CHECKING:
    import pandas as pd

_SINGLES, _BATCH_ROWS = 500, 500


@dataclass(frozen=True)
class Sent:
    """How rows were answered.

    Attributes:
        keys: for each row the id of its request and its position there.
        latencies: seconds of each request with one row, on one connection.
    """

    keys: list[tuple[str, int]]
    latencies: list[float]


@dataclass(frozen=True)
class Latency:
    """Latency as the client saw it, in milliseconds, of so many requests with one row."""

    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def send(url: str, features: pd.DataFrame, progress: Callable[[str], None]) -> Sent:
    """Send all rows to the deployment at `url`: the first 500 one by one, the others 500 at a time.

    Raises:
        PredictionError: a request was not answered with one prediction per row.
    """
    connection = http.client.HTTPConnection(urlparse(url).netloc, timeout=30)
    sent = Sent([], [])
    # Ids tell the requests of all runs of the demo apart.
    run, start = time.time_ns(), 0
    try:
        while start < len(features):
            rows = features.iloc[start : start + (1 if start < _SINGLES else _BATCH_ROWS)]
            body, request_id = _body(rows), f"demo-{run}-{start}"
            begun = time.perf_counter()
            predictions = _post(connection, body, request_id)
            if len(rows) == 1:
                sent.latencies.append(time.perf_counter() - begun)
            if len(predictions) != len(rows):
                raise PredictionError(
                    f"{len(rows)} rows were sent and {len(predictions)} predictions came back"
                )
            sent.keys.extend((request_id, row) for row in range(len(rows)))
            start += len(rows)
            if start % _BATCH_ROWS == 0:
                progress(f"{start:,} of {len(features):,} flights sent")
    finally:
        connection.close()
    return sent


def latency(sent: Sequence[Sent]) -> Latency:
    """The percentiles of all single requests together."""
    all_of_them = [seconds * 1000 for each in sent for seconds in each.latencies]
    p50, p95, p99 = (float(value) for value in np.percentile(all_of_them, [50, 95, 99]))
    return Latency(requests=len(all_of_them), p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _body(rows: pd.DataFrame) -> bytes:
    split = {
        "columns": list(rows.columns),
        "data": rows.astype(object).where(rows.notna(), None).to_numpy().tolist(),
    }
    return msgspec.json.encode({"dataframe_split": split})


def _post(connection: http.client.HTTPConnection, body: bytes, request_id: str) -> list[Any]:
    try:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        connection.request("POST", "/invocations", body, headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise PredictionError("A flight was not answered", why=f"{type(error).__name__}: {error}") from error
    if response.status != 200:
        raise PredictionError(f"A flight was answered with status {response.status}", why=text[:300].decode())
    answer: list[Any] = msgspec.json.decode(text)["predictions"]
    return answer
