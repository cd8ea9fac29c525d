"""The server's processes: a parent that supervises, and workers that each bind the port and serve."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.log import LogLevels
from granian.server import mp
from granian.server.mp import MPServer

from mlflow_deploy.processes import die_with_parent
from mlflow_deploy.serving.auth import Guard
from mlflow_deploy.serving.http import App
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.protocols import admin, feedback, info, mlflow, oip
from mlflow_deploy.serving.scheduling import give_way
from mlflow_deploy.serving.tracing import start_tracing
from mlflow_deploy.serving.tuning import concurrency
from mlflow_deploy.serving.worker import Launch, Worker

BROKEN = 78
"""Exit status for a bundle or configuration that can never serve; EX_CONFIG of sysexits.h."""

_SPARE_THREADS = 8  # for /ping, /metrics and refusals while all others hold requests


class Server(MPServer):
    """granian with four additions: a draining flag, a bounded drain, TLS, an exit status for broken bundles."""

    def __init__(self, launch: Launch, host: str, port: int, *, wait: bool) -> None:
        settings = launch.config.serving
        self._launch = launch
        self._wait = wait
        self.broken = False
        super().__init__(
            "mlflow_deploy",
            address=host,
            port=port,
            interface=Interfaces.WSGI,
            http=HTTPModes.auto,
            workers=settings.workers,
            blocking_threads=concurrency(settings) + settings.queue_size + _SPARE_THREADS,
            respawn_failed_workers=True,
            workers_kill_timeout=max(1, math.ceil(settings.drain_seconds)),
            log_level=LogLevels.error,
            ssl_cert=_path(settings.tls_cert),
            ssl_key=_path(settings.tls_key),
            ssl_ca=_path(settings.tls_client_ca),
            ssl_client_verify=bool(settings.tls_client_ca),
            ssl_protocol_min=SSLProtocols.tls12,
        )

    def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        self.serve(target_loader=_no_application, wrap_loader=False)
        return BROKEN if self.broken else 0

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Start to drain."""
        self._launch.shared.drain()
        super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]

    def shutdown(self, exit_code: int = 0) -> None:
        """Stop the workers; the port stays open for `drain_delay_seconds` before."""
        if self.interrupt_signal and not self.broken:
            time.sleep(self._launch.config.serving.drain_delay_seconds)
        super().shutdown(BROKEN if self.broken else exit_code)  # type: ignore[no-untyped-call]

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:  # type: ignore[override]
        place = Place(idx, self.bind_addr, self.bind_port, self._wait, os.getpid())
        loader = functools.partial(load_application, self._launch, place)
        return super()._spawn_worker(idx=idx, target=target, callback_loader=loader)

    def _respawn_workers(self, workers: list[int], *args: Any, **kwargs: Any) -> None:
        if any(self.wrks[idx].inner.exitcode == BROKEN for idx in workers):
            self.broken = True
            self.interrupt_signal = True
            self.main_loop_interrupt.set()
            return
        logger().error("a worker died and is started again", extra={"fields": {"workers": workers}})
        super()._respawn_workers(workers, *args, **kwargs)


def _no_application() -> Callable[..., Any]:
    raise AssertionError("each worker gets its own loader")


@dataclass(frozen=True)
class Place:
    """Where one worker serves.

    Attributes:
        number: which worker it is, from 0.
        host: address to bind.
        port: HTTP port to bind.
        wait: load the model first, so that the port is bound when the worker is ready.
        parent: process id of the server's parent process.
    """

    number: int
    host: str
    port: int
    wait: bool
    parent: int


def load_application(launch: Launch, place: Place) -> Callable[..., Any]:
    """Make one worker's application; runs in the worker, before it binds the port."""
    die_with_parent(signal.SIGKILL, place.parent)
    # granian starts its threads later, from this one.
    give_way()
    # The parent's handlers were inherited and would swallow a SIGTERM that comes while loading.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    # Overflow and NaN are values here; numpy would warn about each.
    np.seterr(all="ignore")
    # granian's own wrapper makes a WSGI environment for each request, with a copy of all environment variables.
    vars(mp)["_wsgi_call_wrap"] = _unwrapped
    worker = Worker(launch, place.number)
    settings = worker.settings
    try:
        guard = Guard(Path(settings.auth_file)) if settings.auth == "token" else None
        worker.tracing = start_tracing(worker)
        app = make_app(worker, guard)
        if not place.wait:
            _serve_grpc(worker, place, guard)
    except Exception:  # noqa: BLE001 - logged, and told to the parent by the exit status
        _give_up(worker)
    if place.wait:
        _load(worker)
        try:
            _serve_grpc(worker, place, guard)
        except Exception:  # noqa: BLE001
            _give_up(worker)
    else:
        threading.Thread(target=_load, args=(worker,), name="load", daemon=True).start()
    return app


def _unwrapped(app: App, *_: Any) -> Callable[[Any, dict[str, Any]], None]:
    """What granian calls for each request."""
    return app.answer


def _serve_grpc(worker: Worker, place: Place, guard: Guard | None) -> None:
    if worker.settings.grpc:
        from mlflow_deploy.serving.protocols.grpc import server as grpc

        grpc.start(worker, place.host, worker.settings.grpc_port or place.port + 1, guard)


def make_app(worker: Worker, guard: Guard | None = None) -> App:
    """The HTTP application over a worker's state."""
    table, prefixes = oip.routes(worker)
    own = {**info.routes(worker), **admin.routes(worker, guard), **mlflow.routes(worker)}
    own |= feedback.routes(worker)
    return App(worker, {**own, **table}, prefixes, guard)


def _load(worker: Worker) -> None:
    """Load the model, or end the process with the status that tells the parent not to try again."""
    try:
        worker.load()
    except Exception:  # noqa: BLE001
        _give_up(worker)


def _give_up(worker: Worker) -> NoReturn:
    """Log the exception at hand and end this worker for good."""
    logger().exception("the model cannot be served", extra={"fields": worker.identity})
    sys.stderr.flush()
    os._exit(BROKEN)


def _path(setting: str) -> Path | None:
    return Path(setting) if setting else None
