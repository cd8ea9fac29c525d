"""The server's processes: a parent that supervises, and workers that each bind the port and serve."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer

from mlflow_deploy.serving.http import App
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.protocols import info, mlflow
from mlflow_deploy.serving.tuning import concurrency
from mlflow_deploy.serving.worker import Launch, Worker

BROKEN = 78
"""Exit status for a bundle or configuration that can never serve; EX_CONFIG of sysexits.h."""

_SPARE_THREADS = 8  # for /ping, /metrics and refusals while all others hold requests
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send this process a signal when its parent, which has this process id, dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:
        # It died before the request reached the kernel.
        os.kill(os.getpid(), number)


class Server(MPServer):  # type: ignore[misc] # granian ships no types for it
    """granian with three additions: a flag for draining, a bounded drain, an exit status for broken bundles."""

    def __init__(self, launch: Launch, host: str, port: int, *, wait: bool) -> None:
        settings = launch.config.serving
        self._launch = launch
        self._wait = wait
        self._numbers = 0
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
        )

    def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        self.serve(target_loader=_no_application, wrap_loader=False)
        return BROKEN if self.broken else 0

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Start to drain."""
        self._launch.shared.drain()
        super().signal_handler_interrupt(*args, **kwargs)

    def shutdown(self, exit_code: int = 0) -> None:
        """Stop the workers; the port stays open for `drain_delay_seconds` before."""
        if self.interrupt_signal and not self.broken:
            time.sleep(self._launch.config.serving.drain_delay_seconds)
        super().shutdown(BROKEN if self.broken else exit_code)

    def _init_shared_socket(self) -> None:
        # The base class binds the port for a moment to see that it is free. A caller that connects in this
        # moment would be lost, so the workers alone bind it.
        super()._init_shared_socket()

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:
        loader = functools.partial(load_application, self._launch, idx, self._wait, os.getpid())
        return super()._spawn_worker(idx=idx, target=target, callback_loader=loader)

    def _respawn_workers(self, workers: list[int], *args: Any, **kwargs: Any) -> None:
        if any(self.wrks[idx].inner.exitcode == BROKEN for idx in workers):
            self.broken = True
            self.interrupt_signal = True
            self.main_loop_interrupt.set()
            return
        logger().error("a worker died and is started again", extra={"fields": {"workers": workers}})
        super()._respawn_workers(workers, *args, **kwargs)


def _no_application() -> None:
    raise AssertionError("each worker gets its own loader")


def load_application(launch: Launch, number: int, wait: bool, parent: int) -> Callable[..., Any]:
    """Make one worker's application; runs in the worker, before it binds the port.

    Args:
        wait: load the model before returning, so that the port is bound when the worker is ready.
        parent: process id of the server's parent process.
    """
    die_with_parent(signal.SIGKILL, parent)
    # The parent's handlers were inherited and would swallow a SIGTERM that comes while loading.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    worker = Worker(launch, number)
    app = make_app(worker)
    if wait:
        _load(worker)
    else:
        threading.Thread(target=_load, args=(worker,), name="load", daemon=True).start()
    return app


def make_app(worker: Worker) -> App:
    """The HTTP application over a worker's state."""
    return App(worker, {**info.routes(worker), **mlflow.routes(worker)})


def _load(worker: Worker) -> None:
    """Load the model, or end the process with the status that tells the parent not to try again."""
    try:
        worker.load()
    except Exception:
        logger().exception("the model cannot be loaded", extra={"fields": worker.identity})
        sys.stderr.flush()
        os._exit(BROKEN)
