"""POST /feedback: takes true answers that came later, and keeps them for the monitors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from mlflow_deploy.serving.arrow_stream import Column, StreamFiles
from mlflow_deploy.serving.capture_columns import Hasher, spelled
from mlflow_deploy.serving.errors import BadRequest, InvalidValue, NotReady, UnknownPath
from mlflow_deploy.serving.http import Request, Response, Route
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.worker import Worker

FEEDBACK = "/feedback"
SOURCE = "feedback"
_KINDS: dict[type, str] = {bool: "?", int: "<i8", float: "<f8", str: "O"}
_MAX_KEY = 1024

Value = bool | int | float | str


class Label(msgspec.Struct, forbid_unknown_fields=True):
    """The true answer to a request, or to what a key names.

    Attributes:
        label: the true answer; a list has one for each row of the request.
        request_id: the X-Request-Id that the prediction was answered with.
        key: value of the feature that capture.key names.
        row: position of the row in the request.
        time: when the label became known, ISO 8601; without time zone it is UTC, without it, it is now.
    """

    label: Value | list[Value]
    request_id: str = ""
    key: str | int | float = ""
    row: int = 0
    time: datetime | None = None


class _Many(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[Label]


def routes(worker: Worker) -> dict[str, Route]:
    """The route."""
    store = LabelStreams(worker) if worker.config.data else None

    def feedback(request: Request) -> Response:
        if store is None:
            raise UnknownPath(
                "This server takes no labels",
                hint="It has no data folder: deploy it with `mlflow deployments`",
            )
        labels = parse(request.body())
        store.add(labels)
        worker.metrics.labelled(len(labels))
        return Response(msgspec.json.encode({"accepted": len(labels)}))

    return {FEEDBACK: Route("POST", feedback, scope="predict")}


def parse(body: bytes) -> list[Label]:
    """The labels in a body: an object, a list of them, or {"labels": [...]}; one for each row.

    Raises:
        BadRequest: the body is no such thing.
        InvalidValue: a label lacks what tells which prediction it belongs to, or its value.
    """
    try:
        document = msgspec.json.decode(body)
        if isinstance(document, dict) and "labels" in document:
            given = msgspec.convert(document, _Many).labels
        elif isinstance(document, list):
            given = msgspec.convert(document, list[Label])
        else:
            given = [msgspec.convert(document, Label)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(
            "The body holds no labels",
            hint='Send {"request_id": ..., "label": ...} or a list of them',
        ) from error
    if not given:
        raise InvalidValue("The request has no labels")
    return [single for label in given for single in _singles(label)]


def _singles(label: Label) -> list[Label]:
    """A label for each row."""
    if (not label.request_id) == (label.key == ""):
        raise InvalidValue("A label names either the request_id or the key of its prediction")
    if max(len(label.request_id), len(str(label.key))) > _MAX_KEY:
        raise InvalidValue(f"A request_id or key has more than {_MAX_KEY} characters")
    if not 0 <= label.row < 2**31:
        raise InvalidValue("The row of a label is a position in its request, from 0 on")
    if not isinstance(label.label, list):
        values = [label.label]
    elif label.row or label.key != "" or not label.label:
        raise InvalidValue(
            "A list of labels is for all rows of a request, and goes with its request_id alone"
        )
    else:
        values = label.label
    if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values):
        raise InvalidValue("A label is a whole number that does not fit 64 bits")
    moment = _utc(label.time or datetime.now(UTC))
    return [
        msgspec.structs.replace(label, label=value, row=label.row + at, time=moment)
        for at, value in enumerate(values)
    ]


def _utc(moment: datetime) -> datetime:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


class LabelStreams:
    """The labels that one worker took: a stream for each type of label."""

    def __init__(self, worker: Worker) -> None:
        self._settings = worker.config.capture
        self._folder = Path(worker.config.data) / "labels"
        self._files: dict[str, StreamFiles] = {}
        self._lock = threading.Lock()
        hashed = self._settings.key and self._settings.key in self._settings.hash
        self._hasher = Hasher(self._settings) if hashed else None

    def add(self, labels: Sequence[Label]) -> None:
        """Write labels; the kernel has them when this returns.

        Raises:
            NotReady: they cannot be written; none of them was, or some types of them were.
        """
        groups: dict[str, list[Label]] = {}
        for label in labels:
            groups.setdefault(_KINDS[type(label.label)], []).append(label)
        try:
            with self._lock:
                for kind, group in groups.items():
                    files = self._files.get(kind)
                    if files is None:
                        capture = self._settings
                        files = StreamFiles(self._folder, capture.file_bytes, capture.file_seconds)
                        self._files[kind] = files
                    files.tick()
                    files.write(self._columns(kind, group), len(group))
        except OSError as error:
            fields = {"folder": str(self._folder), "cause": str(error)}
            logger().error("labels cannot be written", extra={"fields": fields})
            raise NotReady(
                "The labels cannot be kept now", hint="Send them again later; the server's log says why"
            ) from error

    def _columns(self, kind: str, labels: Sequence[Label]) -> list[Column]:
        moments = [label.time.replace(tzinfo=None) for label in labels if label.time is not None]
        return [
            Column("key", np.array([self._key(label) for label in labels], object)),
            Column("row", np.array([label.row for label in labels], np.int32)),
            Column("label", np.array([label.label for label in labels], np.dtype(kind))),
            Column("time", np.array(moments, "datetime64[us]")),
            Column("source", np.array([SOURCE] * len(labels), object)),
        ]

    def _key(self, label: Label) -> str:
        if label.request_id:
            return label.request_id
        text = spelled(label.key)
        return text if self._hasher is None else self._hasher.text(text)
