"""The loop of the monitor job: waits for windows to end, and has each round done by a short-lived process.

Only light modules are imported at the top, since the process waits most of its life; what it needs of numpy,
pyarrow and MLflow lives in the process of a round.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow_deploy.errors import DeployError, PortInUse
from mlflow_deploy.monitoring.alert_state import read_state
from mlflow_deploy.monitoring.orders import (
    acts_itself,
    folder_fingerprint,
    labels_fingerprint,
    last_change,
    read_order,
    take_up,
)
from mlflow_deploy.targets.base_monitor import JOB, MonitorOrder, order_path

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Rounds share the machine with the servers.
    "OMP_NUM_THREADS": "1",
    "ARROW_NUM_THREADS": "1",
}
"""Environment of the processes that do something, where it does not say otherwise."""

_LOG = logging.getLogger("mlflow_deploy.monitor")
_LONGEST_POLL, _SHORTEST_POLL = 5.0, 0.25
_ROUND_SECONDS = 3600.0
_LAND_FIRST, _LAND_LONGEST = 5.0, 300.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Watch:
    """The loop of the job."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.stopped = False
        self._seen: tuple[object, ...] = ()
        self._land_at = self._land_wait = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._landing: subprocess.Popen[bytes] | None = None
        self._landing_since = 0.0

    def run(self) -> int:
        """Go round until the process is told to stop."""
        awake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        exporter: Any = None
        while not self.stopped:
            poll = _LONGEST_POLL
            try:
                take_up(self.data)
                order = read_order(self.data)
                if order is not None:
                    exporter = exporter or _exporter(self.data, order)
                    self._round(order)
                    poll = _poll(order)
                    if exporter is not None:
                        exporter.heartbeat = time.time()
            except (DeployError, OSError) as error:
                # A full disk or a damaged file may be put right while the job goes on.
                _LOG.error("%s", error)
            select.select([awake], [], [], poll)
        if self._landing is not None:
            self._landing.terminate()
            self._landing.wait()
        return 0

    def _round(self, order: MonitorOrder) -> None:
        signs = self._signs(order)
        if signs != self._seen and not _may_have_windows(self.data, order):
            self._seen = signs
        elif signs != self._seen:
            done = self._process("round")
            # One that died is tried again at once: the window that it died of is given up after some times.
            self._seen = signs if done else ()
            self._land_at = 0.0
        if _alerts_wait(self.data, order):
            self._process("alerts")
        self._land()

    def _land(self) -> None:
        """Log results beside the rounds: an MLflow that is slow delays no verdict."""
        if self._landing is not None and not self._landed(self._landing):
            return
        if not self.stopped and time.monotonic() >= self._land_at and _has_results(self.data):
            # What a round finds from now on is landed after this.
            self._land_at = float("inf")
            self._landing, self._landing_since = self._start("land"), time.monotonic()

    def _landed(self, landing: subprocess.Popen[bytes]) -> bool:
        """Whether the landing is over; says when the next one is due if it left something."""
        status = landing.poll()
        if status is None:
            if time.monotonic() - self._landing_since > _ROUND_SECONDS:
                _give_up(landing, "land")
            return False
        self._landing = None
        self._land_wait = 0.0 if status == 0 else min(2 * self._land_wait or _LAND_FIRST, _LAND_LONGEST)
        if status != 0:
            self._land_at = time.monotonic() + self._land_wait
        return True

    def _signs(self, order: MonitorOrder) -> tuple[object, ...]:
        """Changes when there may be something to judge."""
        now = time.time()
        found: list[object] = [labels_fingerprint(self.data), order_path(self.data).stat().st_mtime_ns]
        for revision in order.revisions:
            for kind, window in revision.windows.items():
                if window.endswith("rows"):
                    folder = self.data / "capture" / f"rev-{revision.number}"
                    found.append(folder_fingerprint(folder, folder / "open"))
                    # Rows are final only after a while, and then maybe nothing changes any more.
                    changed = last_change(folder, folder / "open")
                    found.append(now > changed + revision.graces[kind])
                else:
                    found.append((now - revision.graces[kind]) // _seconds(window))
        return tuple(found)

    def _process(self, command: str) -> bool:
        """Have something done by a process of its own; whether it did it."""
        if self.stopped:
            return True
        self._child = self._start(command)
        try:
            return self._child.wait(_ROUND_SECONDS) == 0
        except subprocess.TimeoutExpired:
            _give_up(self._child, command)
            return False
        finally:
            self._child = None

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **{k: v for k, v in QUIET.items() if k not in os.environ}}
        arguments = [sys.executable, "-m", JOB, command, str(self.data)]
        return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, env=environment)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.terminate()


def _give_up(process: subprocess.Popen[bytes], command: str) -> None:
    _LOG.error("%s took more than %g s and is given up", command, _ROUND_SECONDS)
    process.kill()
    process.wait()


def _may_have_windows(data: Path, order: MonitorOrder) -> bool:
    """Whether a window can have ended since a revision was made; looks at no row."""
    now = time.time()
    for revision in order.revisions:
        since = datetime.fromisoformat(revision.since).timestamp()
        for kind, window in revision.windows.items():
            if window.endswith("rows"):
                if (data / "capture" / f"rev-{revision.number}").is_dir():
                    return True
                continue
            seconds = _seconds(window)
            if (now - revision.graces[kind]) // seconds > since // seconds:
                return True
    return False


def _seconds(window: str) -> float:
    # As `duration_seconds` of the settings, which has checked it and would load pydantic here.
    return float(window[:-1]) * _UNITS[window[-1]]


def _has_results(data: Path) -> bool:
    return next((data / "monitor").glob("rev-*/*/[0-9]*.json"), None) is not None


def _poll(order: MonitorOrder) -> float:
    times = [
        _seconds(window)
        for revision in order.revisions
        for window in revision.windows.values()
        if not window.endswith("rows")
    ]
    return min(_LONGEST_POLL, max(_SHORTEST_POLL, min(times, default=10.0) / 10))


def _exporter(data: Path, order: MonitorOrder) -> Any:
    """The Prometheus exporter, on the port that it had before where that is free."""
    from mlflow_deploy.monitoring.exporter import ADDRESS, Exporter
    from mlflow_deploy.targets.base_monitor import FOLDER

    address = data / FOLDER / ADDRESS
    before = int(address.read_text().rpartition(":")[2]) if address.exists() else 0
    for port in dict.fromkeys((order.metrics_port or before, order.metrics_port)):
        try:
            return Exporter(data, order.deployment, host=order.metrics_host, port=port)
        except PortInUse as error:
            _LOG.error("metrics: %s", error.text)
    return None


def _alerts_wait(data: Path, order: MonitorOrder) -> bool:
    """Whether there is a message, or an action that the job carries out itself, which is due."""
    state = read_state(data)
    now = time.time()
    return bool(
        state.pending
        or any(each.due <= now for each in state.deliveries)
        or (acts_itself(order) and any(each.open and each.due <= now for each in state.actions))
    )
