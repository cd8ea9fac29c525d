"""The monitor job of a deployment: waits for windows to end, and has each round done by a short-lived process.

`python -m mlflow_deploy.monitoring.job watch DATA` is what targets keep running. Others do one thing and
print JSON: `run`, `backfill`, `status`, `results`, `report`, `exporter`, `outcomes`, `pull`, `mark`. Only light
modules are imported at the top, since the process waits most of its life; what it needs of numpy, pyarrow and
MLflow lives in the process of a round.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow_deploy.errors import DeployError, PortInUse
from mlflow_deploy.monitoring.alert_state import read_state
from mlflow_deploy.monitoring.orders import folder_fingerprint, labels_fingerprint, read_order, take_up
from mlflow_deploy.targets.base_monitor import MonitorOrder, order_path

_LOG = logging.getLogger("mlflow_deploy.monitor")
_PR_SET_PDEATHSIG = 1
_LONGEST_POLL, _SHORTEST_POLL = 5.0, 0.25
_ROUND_SECONDS = 3600.0
_LAND_FIRST, _LAND_LONGEST = 5.0, 300.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Rounds share the machine with the servers.
    "OMP_NUM_THREADS": "1",
    "ARROW_NUM_THREADS": "1",
}


class Watch:
    """The loop of the job."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.stopped = False
        self._seen: tuple[object, ...] = ()
        self._land_at = self._land_wait = 0.0
        self._child: subprocess.Popen[bytes] | None = None

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
        if time.monotonic() >= self._land_at and _has_results(self.data):
            landed = self._process("land")
            self._land_wait = 0.0 if landed else min(2 * self._land_wait or _LAND_FIRST, _LAND_LONGEST)
            self._land_at = float("inf") if landed else time.monotonic() + self._land_wait
        if _alerts_wait(self.data):
            self._process("alerts")

    def _signs(self, order: MonitorOrder) -> tuple[object, ...]:
        """Changes when there may be something to judge."""
        now = time.time()
        found: list[object] = [labels_fingerprint(self.data), order_path(self.data).stat().st_mtime_ns]
        for revision in order.revisions:
            for kind, window in revision.windows.items():
                if window.endswith("rows"):
                    folder = self.data / "capture" / f"rev-{revision.number}"
                    found.append(folder_fingerprint(folder, folder / "open"))
                else:
                    seconds = float(window[:-1]) * _UNITS[window[-1]]
                    found.append((now - revision.graces[kind]) // seconds)
        return tuple(found)

    def _process(self, command: str) -> bool:
        """Have something done by a process of its own; whether it did it."""
        if self.stopped:
            return True
        environment = {**os.environ, **{k: v for k, v in _QUIET.items() if k not in os.environ}}
        arguments = [sys.executable, "-m", __spec__.name if __spec__ else __name__, command, str(self.data)]
        self._child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, env=environment)
        try:
            return self._child.wait(_ROUND_SECONDS) == 0
        except subprocess.TimeoutExpired:
            _LOG.error("%s took more than %g s and is given up", command, _ROUND_SECONDS)
            self._child.kill()
            self._child.wait()
            return False
        finally:
            self._child = None

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.terminate()


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
            seconds = float(window[:-1]) * _UNITS[window[-1]]
            if (now - revision.graces[kind]) // seconds > since // seconds:
                return True
    return False


def _has_results(data: Path) -> bool:
    return next((data / "monitor").glob("rev-*/*/[0-9]*.json"), None) is not None


def _poll(order: MonitorOrder) -> float:
    times = [
        float(window[:-1]) * _UNITS[window[-1]]
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


def _alerts_wait(data: Path) -> bool:
    """Whether a message or an action is due."""
    state = read_state(data)
    now = time.time()
    return bool(
        state.pending
        or any(each.due <= now for each in state.deliveries)
        or any(each.open and each.due <= now for each in state.actions)
    )


# --- what processes of a round do --------------------------------------------------------------------------


def _round(data: Path) -> int:
    from mlflow_deploy.monitoring.alerts import follow_up
    from mlflow_deploy.monitoring.jobs import each_due

    written = []
    for result in each_due(data):
        written.append(result)
        _LOG.info(
            "%s of revision %d, %s to %s: %s: %s",
            result.kind, result.revision, result.start, result.end, result.state, result.summary,
        )  # fmt: skip
    follow_up(data, written)
    return 0


def _land(data: Path) -> int:
    from mlflow_deploy.monitoring.evidently_report import report_of
    from mlflow_deploy.monitoring.landing import land

    report = land(data, evidently=report_of)
    if report.problem:
        _LOG.warning("%d results wait for MLflow: %s", report.left, report.problem)
    return 1 if report.problem else 0


def _alerts(data: Path) -> int:
    from mlflow_deploy.monitoring.alerts import follow_up

    follow_up(data)
    return 0


# --- what the target asks ----------------------------------------------------------------------------------


def _run(data: Path, _arguments: argparse.Namespace) -> Any:
    import msgspec

    from mlflow_deploy.monitoring.alerts import follow_up
    from mlflow_deploy.monitoring.evidently_report import report_of
    from mlflow_deploy.monitoring.jobs import run_due
    from mlflow_deploy.monitoring.landing import land

    written = run_due(data)
    follow_up(data, written)
    return {"results": written, "landed": msgspec.to_builtins(land(data, evidently=report_of))}


def _backfill(data: Path, arguments: argparse.Namespace) -> Any:
    import msgspec

    from mlflow_deploy.monitoring.evidently_report import report_of
    from mlflow_deploy.monitoring.jobs import backfill
    from mlflow_deploy.monitoring.landing import land

    written = backfill(
        data,
        datetime.fromisoformat(arguments.start),
        datetime.fromisoformat(arguments.end),
        redo=arguments.redo,
        revision=arguments.revision,
    )
    return {"results": written, "landed": msgspec.to_builtins(land(data, evidently=report_of))}


def _status(data: Path, _arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.overview import overview

    return overview(data, now=datetime.now(UTC))


def _results(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.store import ResultStore

    found = ResultStore(data).results(
        arguments.revision or None, arguments.kind or None, superseded=arguments.all
    )
    found.sort(key=lambda each: (each.start, each.revision, each.kind, each.number))
    return found[-arguments.last :] if arguments.last else found


def _exporter_address(data: Path, _arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.exporter import ADDRESS
    from mlflow_deploy.targets.base_monitor import FOLDER

    path = data / FOLDER / ADDRESS
    return {"address": path.read_text() if path.exists() else ""}


def _report(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.overview import page_of

    return page_of(data, arguments.revision, arguments.kind or "drift", arguments.start)


def _outcomes(data: Path, arguments: argparse.Namespace) -> Any:
    if not any(path.is_file() for path in (data / "labels").rglob("*")):
        # A rollout asks again and again, and most deployments never get a label.
        return {}
    from mlflow_deploy.monitoring.captured import CaptureStore
    from mlflow_deploy.monitoring.outcomes import count_outcomes

    captures = CaptureStore(data)
    return count_outcomes(
        captures,
        captures.revisions(),
        datetime.fromisoformat(arguments.start),
        datetime.now(UTC),
        key=arguments.key,
        tolerance=arguments.tolerance,
    )


def _labels(data: Path, arguments: argparse.Namespace) -> Any:
    from datetime import timedelta

    from mlflow_deploy.monitoring.captured import CaptureStore
    from mlflow_deploy.monitoring.label_report import label_report

    late = None if arguments.late_days is None else timedelta(days=arguments.late_days)
    return label_report(CaptureStore(data), key=arguments.key, late_after=late)


def _pull(data: Path, _arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.hand_over import waiting

    return waiting(data)


def _mark(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.hand_over import mark

    return mark(data, json.loads(arguments.marks))


_ROUNDS: dict[str, Callable[[Path], int]] = {"round": _round, "land": _land, "alerts": _alerts}
_ASKED: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "run": _run,
    "backfill": _backfill,
    "status": _status,
    "results": _results,
    "report": _report,
    "exporter": _exporter_address,
    "outcomes": _outcomes,
    "pull": _pull,
    "mark": _mark,
    "labels": _labels,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 with `{"error": ...}` for what a person can put right."""
    options = _parse(arguments)
    level = logging.INFO if options.command in ("watch", *_ROUNDS) else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if options.command == "watch":
        if options.die_with_parent:
            _die_with_parent(signal.SIGTERM)
        return Watch(options.data).run()
    if options.command in _ROUNDS:
        # Killed with the loop: the next one does this round again, and never two at once.
        _die_with_parent(signal.SIGKILL)
        os.nice(10)
        try:
            return _ROUNDS[options.command](options.data)
        except DeployError as error:
            _LOG.error("%s", error.text)
            return 1
    import msgspec

    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    try:
        # MLflow prints the addresses of runs; what is asked for is the only thing on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            answer = _ASKED[options.command](options.data, options)
    except DeployError as error:
        sys.stdout.write(json.dumps({"error": error.what, "why": error.why, "hint": error.hint}) + "\n")
        return 2
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


def _die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m mlflow_deploy.monitoring.job", description=__doc__)
    parser.add_argument("command", choices=["watch", *_ROUNDS, *_ASKED])
    parser.add_argument("data", type=Path, help="the deployment's data folder")
    parser.add_argument("--revision", type=int, default=0)
    parser.add_argument("--kind", choices=["drift", "performance"], default=None)
    parser.add_argument("--start", default="", help="UTC, ISO 8601")
    parser.add_argument("--end", default="", help="UTC, ISO 8601")
    parser.add_argument("--redo", action="store_true", help="judge windows again that have a result")
    parser.add_argument("--last", type=int, default=0, help="only so many")
    parser.add_argument("--marks", default="[]", help="JSON, as `hand_over.mark` takes it")
    parser.add_argument("--die-with-parent", action="store_true", help="stop when the starting process ends")
    parser.add_argument("--all", action="store_true", help="also superseded results")
    parser.add_argument("--key", default="_request_id", help="what labels name")
    parser.add_argument("--late-days", type=float, default=None, help="labels after so many days are late")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share by which a number may be off")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
