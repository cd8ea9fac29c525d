"""The HTTP side: a WSGI application with a fixed table of routes, limits, request ids and error answers."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import random
import re
import zlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import perf_counter
from typing import Any

import msgspec

from mlflow_deploy.serving.auth import Guard
from mlflow_deploy.serving.backends.base import Call
from mlflow_deploy.serving.crew import Crew
from mlflow_deploy.serving.dataplane import Resume
from mlflow_deploy.serving.errors import (
    BadRequest,
    ModelFailed,
    NotReady,
    RequestError,
    TooLarge,
    Unauthenticated,
    UnknownPath,
    UnsupportedType,
    WrongMethod,
)
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.metrics import PROTOCOLS
from mlflow_deploy.serving.recorder import Taking
from mlflow_deploy.serving.scheduling import stand_firm
from mlflow_deploy.serving.tracing import Tracing
from mlflow_deploy.serving.tuning import model_threads
from mlflow_deploy.serving.worker import Worker

Headers = list[tuple[str, str]]
StartResponse = Callable[[str, Headers], object]
Send = Callable[[int, Headers, bytes], object]

_STATUS_LINE = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
JSON = "application/json"
_PIECE = 1 << 16


class Request(msgspec.Struct, gc=False):
    """One HTTP request.

    Attributes:
        environ: WSGI's environment.
        id: the request id, the caller's or our own.
        arrived: `time.perf_counter()` at its arrival.
        limit: most bytes that its body may have.
        call: what it asked the model; set by the data plane.
        resume: takes the answer from another thread, when the handler has returned None; None when it must not.
    """

    environ: dict[str, Any]
    id: str
    arrived: float
    limit: int
    call: Call | None = None
    resume: Resume | None = None

    def body(self) -> bytes:
        """The body, decompressed when the request says that it is compressed.

        Raises:
            TooLarge: it has more than `max_body_bytes`, found while reading, before it is held whole.
            UnsupportedType: it is compressed in a way that the server does not read.
        """
        environ = self.environ
        length = environ.get("CONTENT_LENGTH")
        encoding = environ.get("HTTP_CONTENT_ENCODING")
        if length:
            if not length.isdecimal():
                raise BadRequest("The Content-Length is not a number")
            if int(length) > self.limit:
                self._discard()
                raise self._too_large()
            data: bytes = environ["wsgi.input"].read()
        else:
            data = environ["wsgi.input"].read(self.limit + 1)
            if len(data) > self.limit:
                self._discard()
                raise self._too_large()
        return data if encoding is None else self._inflate(data, encoding)

    def _discard(self) -> None:
        """Read on, up to as much again, so that a caller who is still sending gets to read the refusal."""
        left = self.limit
        while left > 0 and (part := self.environ["wsgi.input"].read(_PIECE)):
            left -= len(part)

    def _inflate(self, data: bytes, encoding: str) -> bytes:
        if encoding.lower() == "identity":
            return data
        if encoding.lower() not in ("gzip", "deflate"):
            raise UnsupportedType("The Content-Encoding must be gzip, deflate or identity")
        # 32 lets zlib tell gzip from zlib by the header.
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            plain = inflater.decompress(data, self.limit + 1)
        except zlib.error as error:
            raise BadRequest("The body is not compressed as its Content-Encoding says") from error
        if len(plain) > self.limit:
            raise self._too_large()
        if not inflater.eof:
            raise BadRequest("The compressed body ends too early")
        return plain

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than the {self.limit} bytes that are allowed",
            hint="Send fewer rows per request, or raise serving.max_body_bytes",
        )


class Response(msgspec.Struct, gc=False):
    """The answer to a request."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Headers = []


Handler = Callable[[Request], Response | None]


class Route:
    """A handler, the method it takes, the protocol it is counted under, and how it words its errors."""

    __slots__ = ("error_body", "handler", "method", "predicts", "protocol", "scope")

    def __init__(
        self,
        method: str,
        handler: Handler,
        *,
        protocol: str = "other",
        scope: str = "",
        error_body: Callable[[RequestError], bytes] | None = None,
    ) -> None:
        self.method = method
        self.handler = handler
        self.protocol = PROTOCOLS.index(protocol)
        self.scope = scope
        self.predicts = scope == "predict" and protocol != "other"
        self.error_body = error_body or json_error


def json_error(error: RequestError) -> bytes:
    """The error as {"error_code", "message"}."""
    return msgspec.json.encode({"error_code": error.error_code, "message": error.text})


class App:
    """The WSGI application of one worker."""

    def __init__(
        self,
        worker: Worker,
        routes: dict[str, Route],
        prefixes: Iterable[tuple[str, Route]] = (),
        guard: Guard | None = None,
    ) -> None:
        self._metrics = worker.metrics
        self._recorder = worker.recorder
        self._capture = worker.capture
        self._tracing = worker.tracing
        self._routes = routes
        self._prefixes = tuple(prefixes)
        self._guard = guard
        self._limit = worker.settings.max_body_bytes
        self._sample = worker.settings.access_log
        self._batching = worker.settings.max_batch_size > 1
        self._crew = Crew(model_threads(worker.settings))
        self._prefix = f"{os.getpid():x}-{random.getrandbits(40):010x}-"
        self._counter = itertools.count(1)
        self._fallback = Route("", _unknown)

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        """Answer one request, as WSGI has it."""
        bodies: list[bytes] = []

        def send(status: int, headers: Headers, body: bytes) -> None:
            start(_STATUS_LINE[status], headers)
            bodies.append(body)

        self._answer(environ, send, wait=True)
        return bodies

    def answer(self, protocol: Any, environ: dict[str, Any]) -> None:
        """Answer one request of granian's, whose `environ` has what belongs to the request and nothing else.

        The answer may be sent later, by another thread.
        """
        stand_firm()
        self._answer(environ, protocol.response_bytes, wait=not self._batching)
        self._crew.finished(perf_counter())

    def _answer(self, environ: dict[str, Any], send: Send, *, wait: bool) -> None:
        arrived = perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID")
        if given is None or _REQUEST_ID.fullmatch(given) is None:
            given = f"{self._prefix}{next(self._counter):x}"
        request = Request(environ, given, arrived, self._limit)
        path = environ["PATH_INFO"]
        route = self._routes.get(path) or self._find(path)
        taking: Taking | None = None
        if self._recorder.on and route.predicts:
            taking = self._recorder.begin(environ, given)
        if not wait:
            request.resume = functools.partial(self._close, request, route, taking, send)
        response: Response | None = None
        error: Exception | None = None
        try:
            if environ["REQUEST_METHOD"] != route.method and route.method:
                raise WrongMethod(f"This address takes {route.method} only")
            if self._guard is not None and route.scope:
                self._guard.check(environ.get("HTTP_AUTHORIZATION"), route.scope)
            response = route.handler(request)
        except Exception as raised:  # noqa: BLE001 - whatever a model raises becomes an answer and a log line
            error = raised
        if response is not None or error is not None:
            self._close(request, route, taking, send, response, error)

    def _close(
        self,
        request: Request,
        route: Route,
        taking: Taking | None,
        send: Send,
        response: Response | None,
        error: Exception | None,
    ) -> None:
        """Count and log a request and send its answer, `response`, or without one what `error` says."""
        # It refers to the request, and the collector of cycles looks at neither: both would stay for ever.
        request.resume = None
        if response is None:
            response = _error_response(error or ModelFailed(), route)
        seconds = perf_counter() - request.arrived
        self._metrics.answered(
            route.protocol, response.status, request.arrived, request.arrived + seconds, request.call
        )
        if error is not None or (self._sample and random.random() < self._sample):  # noqa: S311
            self._log(request, response.status, seconds, error)
        headers = [("content-type", response.content_type), ("x-request-id", request.id)]
        if response.headers:
            headers += response.headers
        if taking is not None:
            taking.end(response.status, response.body, headers, seconds)
        send(response.status, headers, response.body)
        if self._capture is not None and route.predicts:
            self._capture.put(request.id, request.arrived, seconds, response.status, request.call)
        if self._tracing is not None and route.predicts:
            self._trace(self._tracing, request, response.status, seconds)

    def _find(self, path: str) -> Route:
        for prefix, route in self._prefixes:
            if path.startswith(prefix):
                return route
        return self._fallback

    def _trace(self, tracing: Tracing, request: Request, status: int, seconds: float) -> None:
        environ = request.environ
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        tracing.answered(
            f"{method} {path}",
            {"http.request.method": method, "http.route": path, "mlflow_deploy.request_id": request.id},
            {"traceparent": environ.get("HTTP_TRACEPARENT"), "tracestate": environ.get("HTTP_TRACESTATE")},
            status=status,
            arrived=request.arrived,
            ended=request.arrived + seconds,
            call=request.call,
        )

    def _log(self, request: Request, status: int, seconds: float, error: Exception | None) -> None:
        fields: dict[str, Any] = {
            "request_id": request.id,
            "method": request.environ["REQUEST_METHOD"],
            "path": request.environ["PATH_INFO"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        trace = request.environ.get("HTTP_TRACEPARENT")
        if trace:
            fields["traceparent"] = trace
        if error is None:
            logger().info("request", extra={"fields": fields})
            return
        if isinstance(error, RequestError):
            cause = error.__cause__
            fields["error"] = error.text
            if cause is not None:
                fields["cause"] = f"{type(cause).__name__}: {cause}"
            # Probes that find the server loading or stopping are no news.
            level = logging.DEBUG if isinstance(error, NotReady) else logging.WARNING
            logger().log(level, "request refused", extra={"fields": fields})
            return
        logger().error("the model failed", exc_info=error, extra={"fields": fields})


def _error_response(error: Exception, route: Route) -> Response:
    known = error if isinstance(error, RequestError) else ModelFailed()
    headers: Headers = []
    if known.retry_after:
        headers.append(("retry-after", str(known.retry_after)))
    if isinstance(known, Unauthenticated):
        headers.append(("www-authenticate", "Bearer"))
    if isinstance(known, WrongMethod):
        headers.append(("allow", route.method))
    return Response(route.error_body(known), known.status, JSON, headers)


def _unknown(_: Request) -> Response:
    raise UnknownPath("There is nothing at this address", hint="The server's page at / lists its addresses")


def not_ready(worker: Worker) -> NotReady:
    """Why the worker takes no prediction now."""
    if worker.metrics.shared.draining:
        return NotReady("The server is stopping", hint="Send the request again, it will reach another server")
    return NotReady("The server is loading the model", hint="Wait until /ping answers 200")
