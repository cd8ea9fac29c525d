"""Real flights as requests: latency as a client sees it, and accuracy against labels that come later."""

from __future__ import annotations

import dataclasses
import http.client
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import msgspec
import numpy as np

from mlflow_deploy.errors import PredictionError

if TYPE_CHECKING:
    import pandas as pd

_SINGLE_ROWS = 5000
_BATCH_ROWS = 500


@dataclasses.dataclass(frozen=True)
class TrafficReport:
    """What was sent and how it was answered.

    Attributes:
        rows: flights sent.
        requests: requests sent; the first of them held one flight each, the rest many.
        single_requests: requests with one flight, which the latencies are of.
        p50_ms, p95_ms, p99_ms: latency of those on one connection, in milliseconds.
        accuracy: share of right predictions.
        majority: accuracy of always predicting the commoner class.
        recall: share of late flights that were predicted late.
        precision: share of flights predicted late that were.
    """

    rows: int
    requests: int
    single_requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    accuracy: float
    majority: float
    recall: float
    precision: float


def send(
    url: str, features: pd.DataFrame, labels: pd.Series[Any], progress: Callable[[str], None]
) -> TrafficReport:
    """Send all rows to the deployment at `url`, the first 5,000 one by one, and compare with the labels.

    Raises:
        PredictionError: a request was not answered with one prediction per row.
    """
    connection = http.client.HTTPConnection(urlparse(url).netloc, timeout=30)
    answers: list[int] = []
    latencies: list[float] = []
    requests = 0
    try:
        start = 0
        while start < len(features):
            size = 1 if start < _SINGLE_ROWS else _BATCH_ROWS
            body = _body(features.iloc[start : start + size])
            begun = time.perf_counter()
            predictions = _post(connection, body)
            if size == 1:
                latencies.append(time.perf_counter() - begun)
            if len(predictions) != len(features.iloc[start : start + size]):
                raise PredictionError(f"{size} rows were sent and {len(predictions)} predictions came back")
            answers.extend(int(value) for value in predictions)
            requests += 1
            start += size
            if requests % 500 == 0:
                progress(f"{start:,} of {len(features):,} flights sent")
    finally:
        connection.close()
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(latencies, [50, 95, 99]))
    predicted, truth = np.asarray(answers), labels.to_numpy()
    caught = int(((predicted == 1) & (truth == 1)).sum())
    return TrafficReport(
        rows=len(features),
        requests=requests,
        single_requests=len(latencies),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        accuracy=float((predicted == truth).mean()),
        majority=float(max(truth.mean(), 1 - truth.mean())),
        recall=caught / max(1, int((truth == 1).sum())),
        precision=caught / max(1, int((predicted == 1).sum())),
    )


def _body(rows: pd.DataFrame) -> bytes:
    split = {
        "columns": list(rows.columns),
        "data": rows.astype(object).where(rows.notna(), None).to_numpy().tolist(),
    }
    return msgspec.json.encode({"dataframe_split": split})


def _post(connection: http.client.HTTPConnection, body: bytes) -> list[Any]:
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise PredictionError("A flight was not answered", why=f"{type(error).__name__}: {error}") from error
    if response.status != 200:
        raise PredictionError(f"A flight was answered with status {response.status}", why=text[:300].decode())
    answer: list[Any] = msgspec.json.decode(text)["predictions"]
    return answer
