"""The commands of a deployment's monitor job.

`python -m mlflow_deploy.monitoring.job watch DATA` is what targets keep running. Others do one thing and
print JSON: `run`, `backfill`, `status`, `results`, `report`, `exporter`, `outcomes`, `labels`, and what is lent
to a command elsewhere: `wait`, `claim`, `settle`, `pull`, `mark`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import DeployError
from mlflow_deploy.monitoring.watch import QUIET, Watch
from mlflow_deploy.processes import die_with_parent

if TYPE_CHECKING:
    from mlflow_deploy.monitoring.results import WindowResult

_LOG = logging.getLogger("mlflow_deploy.monitor")


# --- what processes of a round do --------------------------------------------------------------------------


def _round(data: Path) -> int:
    from mlflow_deploy.monitoring.alert_state import read_state
    from mlflow_deploy.monitoring.alerts import follow_up
    from mlflow_deploy.monitoring.jobs import each_due

    fresh: list[WindowResult] = []
    try:
        for result in each_due(data):
            fresh.append(result)
            _LOG.info(
                "%s of revision %d, %s to %s: %s: %s",
                result.kind, result.revision, result.start, result.end, result.state, result.summary,
            )  # fmt: skip
            if result.state in ("warning", "alert", "error") or not read_state(data).calm:
                # Nobody waits for a problem, or its end, until the other windows of a long downtime are judged.
                follow_up(data, fresh)
                fresh.clear()
    finally:
        follow_up(data, fresh)
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
    from mlflow_deploy.monitoring.captured import deployment_captures
    from mlflow_deploy.monitoring.outcomes import count_outcomes

    captures = deployment_captures(data)
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

    from mlflow_deploy.monitoring.captured import deployment_captures
    from mlflow_deploy.monitoring.label_report import label_report

    late = None if arguments.late_days is None else timedelta(days=arguments.late_days)
    return label_report(deployment_captures(data), key=arguments.key, late_after=late)


def _pull(data: Path, _arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.hand_over import waiting

    return waiting(data)


def _mark(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.hand_over import mark

    return mark(data, json.loads(arguments.marks))


def _wait(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.claims import wait_for_work

    return wait_for_work(data, arguments.owner, arguments.seconds, results=arguments.results)


def _claim(data: Path, arguments: argparse.Namespace) -> Any:
    from mlflow_deploy.monitoring.claims import claim

    return claim(data, arguments.owner)


def _settle(data: Path, arguments: argparse.Namespace) -> Any:
    import msgspec

    from mlflow_deploy.monitoring.claims import Settled, settle

    return settle(data, msgspec.json.decode(arguments.settled, type=list[Settled]))


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
    "wait": _wait,
    "claim": _claim,
    "settle": _settle,
    "labels": _labels,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 with `{"error": ...}` for what a person can put right."""
    options = _parse(arguments)
    level = logging.INFO if options.command in ("watch", *_ROUNDS) else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if options.command == "watch":
        if options.die_with_parent:
            die_with_parent(signal.SIGTERM)
        return Watch(options.data).run()
    if options.command in _ROUNDS:
        # Killed with the loop: the next one does this round again, and never two at once.
        die_with_parent(signal.SIGKILL)
        os.nice(10)
        try:
            return _ROUNDS[options.command](options.data)
        except DeployError as error:
            _LOG.error("%s", error.text)
            return 1
    import msgspec

    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    try:
        # MLflow prints the addresses of runs; what is asked for is the only thing on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            answer = _ASKED[options.command](options.data, options)
    except DeployError as error:
        sys.stdout.write(json.dumps({"error": error.what, "why": error.why, "hint": error.hint}) + "\n")
        return 2
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


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
    parser.add_argument("--owner", default="", help="who carries actions out")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long to wait for something to do")
    parser.add_argument("--results", action="store_true", help="do not wait when results wait for MLflow")
    parser.add_argument("--settled", default="[]", help="JSON, as `claims.settle` takes it")
    parser.add_argument("--die-with-parent", action="store_true", help="stop when the starting process ends")
    parser.add_argument("--all", action="store_true", help="also superseded results")
    parser.add_argument("--key", default="_request_id", help="what labels name")
    parser.add_argument("--late-days", type=float, default=None, help="labels after so many days are late")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share by which a number may be off")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
