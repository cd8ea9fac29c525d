"""Keeps requests with their answers for the monitors, off the path of the requests."""

from __future__ import annotations

import os
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import util
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.files import write_atomic
from mlflow_deploy.serving.arrow_stream import Column, StreamFiles, make_folder
from mlflow_deploy.serving.capture_columns import Answers, Features
from mlflow_deploy.serving.capture_records import RowRecords
from mlflow_deploy.serving.capture_retention import expire
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.values import Array

if TYPE_CHECKING:
    from mlflow_deploy.serving.backends.base import Call, Model
    from mlflow_deploy.serving.config import ServerConfig
    from mlflow_deploy.serving.metrics import WorkerMetrics

_TOGETHER = (
    2048  # requests that become one batch at most, so that no other thread waits long for the interpreter
)
_AT_ONCE = 2048  # requests that should wait when they are written
_DRAINING_SECONDS = 0.05  # between writes of a server that stops, which may end at any moment
_RETRY_SECONDS = 5.0
_COMPLAIN_SECONDS = 60.0
_FINAL_SECONDS = 5.0
_EXPIRE_SECONDS = 60.0
_SERVED = 200

Kept = tuple[str, float, float, int, "Call | None"]
"""Request id, `perf_counter()` at its arrival, seconds to its answer, status, and what it asked the model."""

Waiting = Kept | bytes
"""What waits to be written: a record of `RowRecords`, or what has no such form."""


@dataclass
class Counts:
    """What became of requests in this process. Only the writer counts, but for `refused`.

    Attributes:
        kept: requests that were written.
        refused: requests that found the queue full; their rows are in `refused_rows`.
        lost: requests that could not be written.
        write_errors: writes that failed.
    """

    kept: int = 0
    refused: int = 0
    refused_rows: int = 0
    lost: int = 0
    lost_rows: int = 0
    write_errors: int = 0


class Capture:
    """One worker's queue of answered requests and the thread that writes them.

    Args:
        bundle: what is served.
        config: the server's configuration; `data` names the deployment's data folder.

    Raises:
        ConfigError: the settings contradict each other, or a key cannot be read.
    """

    def __init__(self, bundle: Bundle, config: ServerConfig) -> None:
        settings = config.capture
        self._settings = settings
        self._folder = Path(config.data) / "capture" / f"rev-{config.revision}"
        self._features = Features(bundle, settings)
        # A graph does not change its inputs.
        self.keep: Callable[[Any], Any] | None = None if bundle.manifest.servable.feeds else _kept
        self._classes = bundle.manifest.servable.classes
        self._answers: Answers | None = None
        self._columns_of_none: list[Column] = []
        self._files = StreamFiles(self._folder, settings.file_bytes, settings.file_seconds)
        self._limit = round(settings.sample * 2**32)
        self._sampling = settings.sample < 1
        self._records = RowRecords()
        self._pack = self._records.pack
        self._queue: deque[Waiting] = deque()
        self._most = settings.queue_requests
        self._rows = 0  # rows that wait; set back by the writer, so that a lost addition does not stay lost
        self._most_rows = settings.queue_rows
        self._refusing = threading.Lock()
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._retry_at = self._expire_at = 0.0
        self._complained = -_COMPLAIN_SECONDS
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}"
        self._told: tuple[int, int, int] = (0, 0, 0)
        self._noted: set[str] = set()
        self.counts = Counts()

    # --- the path of the requests ---

    def put(self, request_id: str, arrived: float, seconds: float, status: int, call: Call | None) -> None:
        """Keep a request that was answered, if it is one of those that are kept; never waits.

        Args:
            arrived: `time.perf_counter()` at its arrival.
            seconds: from its arrival to its answer.
            call: what it asked the model, None when it did not get so far.
        """
        if self._sampling and zlib.crc32(request_id.encode()) >= self._limit:
            return
        queue = self._queue
        if len(queue) >= self._most or self._rows >= self._most_rows:
            with self._refusing:
                self.counts.refused += 1
                self.counts.refused_rows += call.rows if call is not None else 0
            return
        record = None
        if call is not None:
            self._rows += call.rows
            if status == _SERVED:
                record = self._pack(request_id, arrived, seconds, call.asked, call.answer)
        queue.append((request_id, arrived, seconds, status, call) if record is None else record)

    # --- the writer ---

    def start(self, model: Model, metrics: WorkerMetrics) -> None:
        """Begin to write; called when the model is loaded."""
        self._answers = Answers(model.to_tensors, self._settings.max_values, self._classes)
        threading.Thread(target=self._run, args=(metrics,), name="capture", daemon=True).start()
        # The workers end by multiprocessing's own exit, which knows nothing of other hooks.
        util.Finalize(self, self.close, exitpriority=10)

    def close(self) -> None:
        """Write what waits and end the file."""
        self._stop.set()
        if self._writing.acquire(timeout=_FINAL_SECONDS):
            try:
                self._drain()
                self._files.close()
            except OSError as error:
                self._complain(error)
            finally:
                self._writing.release()

    def _run(self, metrics: WorkerMetrics) -> None:
        before = Counts()
        pause = self._settings.flush_seconds
        while not self._stop.wait(min(pause, _DRAINING_SECONDS) if metrics.shared.draining else pause):
            # What waits long leaves the processor's caches, with the memory that requests would use again.
            pause = min(self._settings.flush_seconds, pause * _AT_ONCE / max(1, len(self._queue)))
            with self._writing:
                self._drain()
                self._tidy_up()
                self._keep_books()
            now = Counts(**vars(self.counts))
            metrics.captured(
                now.kept - before.kept,
                now.refused + now.lost - before.refused - before.lost,
                now.write_errors - before.write_errors,
            )
            before = now

    def _tidy_up(self) -> None:
        try:
            self._files.tick()
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _EXPIRE_SECONDS
                expire(self._folder, self._settings.max_days, self._settings.max_bytes)
        except OSError as error:
            self._complain(error)

    def _drain(self) -> None:
        """Write what waits now; what comes meanwhile is for the next time."""
        queue = self._queue
        left = len(queue)
        self._rows = 0
        while left > 0:
            taken = [queue.popleft() for _ in range(min(left, _TOGETHER))]
            left -= len(taken)
            records = [each for each in taken if isinstance(each, bytes)]
            if records:
                self._write(partial(self._columns_of_records, records), len(records), len(records))
            if len(records) < len(taken):
                others = [each for each in taken if not isinstance(each, bytes)]
                rows = sum(call.rows for *_, call in others if call is not None)
                self._write(partial(self._columns, others), len(others), rows)

    def _write(self, columns: Callable[[], list[Column]], requests: int, rows: int) -> None:
        """Write a batch.

        Args:
            columns: makes it.
            requests: how many it holds.
            rows: of them, how many rows the answered ones have.
        """
        try:
            if time.monotonic() < self._retry_at:
                raise _NotYetError
            made = columns()
            self._files.write(made, len(made[0].values))
        except _NotYetError:
            self._lose(requests, rows)
        except Exception as error:  # noqa: BLE001 - whatever a model's answer does here, requests are not its business
            self._retry_at = time.monotonic() + _RETRY_SECONDS if isinstance(error, OSError) else 0.0
            self.counts.write_errors += 1
            self._lose(requests, rows)
            self._complain(error)
        else:
            self.counts.kept += requests

    def _lose(self, requests: int, rows: int) -> None:
        self.counts.lost += requests
        self.counts.lost_rows += rows

    def _columns_of_records(self, records: Sequence[bytes]) -> list[Column]:
        decoded, count = self._records.unpack(records), len(records)
        service = _service_columns(
            decoded.ids,
            np.zeros(count, np.int32),
            decoded.arrived,
            decoded.latencies,
            np.full(count, _SERVED, np.int16),
        )
        return [*service, *self._columns_of_calls([decoded.given], [decoded.answers], [count])]

    def _columns(self, taken: Sequence[Kept]) -> list[Column]:
        """Answered requests first, each with its rows; then a row for each one that failed."""
        answered = [kept for kept in taken if kept[3] == _SERVED and kept[4] is not None]
        failed = [kept for kept in taken if kept[3] != _SERVED or kept[4] is None]
        calls = [kept[4] for kept in answered if kept[4] is not None]
        counts = [call.rows for call in calls]
        columns = self._columns_of_none
        if calls:
            columns = self._columns_of_calls(
                [call.asked for call in calls], [call.answer for call in calls], counts
            )
        return [*_service(answered, counts, failed), *(_longer(each, len(failed)) for each in columns)]

    def _columns_of_calls(
        self, asked: Sequence[Any], answers: Sequence[Any], counts: Sequence[int]
    ) -> list[Column]:
        """The features and answers of calls with so many rows each."""
        if self._answers is None:
            return []
        columns = [*self._features.columns(asked, counts), *self._answers.columns(answers, counts)]
        self._tell_what_is_left_out()
        # A batch of failed requests only shall not look as if the columns had changed.
        self._columns_of_none = [Column(each.name, each.values[:0]) for each in columns]
        return columns

    # --- what people are told ---

    def _keep_books(self) -> None:
        """Write down what could not be kept, when that has changed."""
        counts = self.counts
        told = (counts.refused + counts.lost, counts.refused_rows + counts.lost_rows, counts.write_errors)
        if told == self._told:
            return
        document = dict(zip(("requests", "rows", "write_errors"), told, strict=True))
        try:
            folder = self._folder / "counts"
            make_folder(folder)
            write_atomic(folder / f"{self._name}.json", msgspec.json.encode(document), mode=0o640)
        except OSError as error:
            self._complain(error)
        else:
            self._told = told

    def _tell_what_is_left_out(self) -> None:
        left_out = {**self._features.left_out, **(self._answers.left_out if self._answers else {})}
        for name in left_out.keys() - self._noted:
            self._noted.add(name)
            logger().warning(
                "a column is not captured", extra={"fields": {"column": name, "why": left_out[name]}}
            )

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_SECONDS:
            self._complained = now
            logger().error(
                "requests cannot be captured; they are answered all the same",
                exc_info=None if isinstance(error, OSError) else error,
                extra={
                    "fields": {"folder": str(self._folder), "cause": str(error), "lost": self.counts.lost}
                },
            )


def _kept(data: Any) -> Any:
    """What a call asks a pyfunc model, in a form that the model cannot change while it computes."""
    frame, *rest = data
    if isinstance(frame, dict):
        return ({name: _copied(value) for name, value in frame.items()}, *rest)
    return (_copied(frame), *rest)


def _copied(value: Any) -> Any:
    return value.copy() if hasattr(value, "copy") else value


class _NotYetError(Exception):
    """Writing failed a moment ago and is not tried again yet."""


def _service(answered: Sequence[Kept], rows: Sequence[int], failed: Sequence[Kept]) -> list[Column]:
    """The columns of every captured row that are no features and no answers.

    Args:
        rows: how many each answered request has.
    """
    together = [*answered, *failed]
    counts = np.array([*rows, *(1 for _ in failed)], np.int64)
    single = len(together) == int(counts.sum())
    row = np.zeros(len(together), np.int32) if single else _positions(counts)

    def spread(values: Array) -> Array:
        return values if single else np.repeat(values, counts)

    return _service_columns(
        spread(np.array([kept[0] for kept in together], object)),
        row,
        spread(np.array([kept[1] for kept in together])),
        spread(np.array([kept[2] * 1e3 for kept in together], np.float32)),
        spread(np.array([kept[3] for kept in together], np.int16)),
    )


def _service_columns(ids: Array, row: Array, arrived: Array, latency: Array, status: Array) -> list[Column]:
    """The same from arrays of shape [rows]; `arrived` by `perf_counter()`, `latency` in milliseconds."""
    # The clock may have been set since the last time.
    moments = (arrived + (time.time() - perf_counter())) * 1e6
    return [
        Column("_request_id", ids),
        Column("_row", row),
        Column("_time", moments.astype(np.int64).view("datetime64[us]")),
        Column("_latency_ms", latency),
        Column("_status", status),
    ]


def _positions(counts: Array) -> Array:
    """0, 1, ... for the rows of each request."""
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    positions: Array = (np.arange(len(starts)) - starts).astype(np.int32)
    return positions


def _longer(column: Column, more: int) -> Column:
    """The column with so many missing values at its end."""
    if not more:
        return column
    valid = np.ones(len(column.values), bool) if column.valid is None else column.valid
    values = np.concatenate([column.values, np.zeros(more, column.values.dtype)])
    if values.dtype == object:
        values[len(column.values) :] = ""
    return Column(column.name, values, np.concatenate([valid, np.zeros(more, bool)]))
