"""Judge every final window of a deployment's revisions exactly once; what is killed half way is done again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.config_monitor import MonitorSpec, duration_seconds
from mlflow_deploy.errors import DeployError, StorageUnavailable
from mlflow_deploy.files import locked, write_atomic
from mlflow_deploy.monitoring.captured import REQUEST_ID, CaptureStore
from mlflow_deploy.monitoring.drift_verdict import judge_drift
from mlflow_deploy.monitoring.orders import labels_fingerprint, read_order, shared_places
from mlflow_deploy.monitoring.performance_verdict import judge_performance
from mlflow_deploy.monitoring.references import reference_of
from mlflow_deploy.monitoring.results import MonitorKind, WindowResult
from mlflow_deploy.monitoring.row_times import RowTimes
from mlflow_deploy.monitoring.store import KINDS, ResultStore, stem
from mlflow_deploy.monitoring.verdict import Finding
from mlflow_deploy.monitoring.window_rows import WindowRows
from mlflow_deploy.monitoring.windows import (
    Window,
    final_windows,
    micros,
    row_count,
)
from mlflow_deploy.targets.base_monitor import MonitoredRevision, MonitorOrder

MAX_ATTEMPTS = 5
"""Times that the judging of a window may die before that is its verdict."""
_LOCK = "lock"
_SEEN = ".labels"
_LOG = logging.getLogger("mlflow_deploy.monitor")


class Job:
    """The monitors of one deployment at one moment; made anew for every round."""

    def __init__(self, data: Path, order: MonitorOrder, now: datetime) -> None:
        self.data, self.order, self.now = data, order, now
        self.captures = CaptureStore(data, shared=shared_places(order))
        self.results = ResultStore(data)
        self.fingerprint = labels_fingerprint(data)
        self._labels: pa.Table | None = None

    @property
    def labels(self) -> pa.Table:
        """All labels, read once in a round."""
        if self._labels is None:
            self._labels = self.captures.labels()
        return self._labels


def run_due(data: Path, *, now: datetime | None = None) -> list[WindowResult]:
    """Judge all windows that are final and have no result, and those again whose labels changed.

    Args:
        data: the deployment's data folder.
        now: the time, for tests; by default the clock's.

    Returns:
        The results that were written now.
    """
    return list(each_due(data, now=now))


def each_due(data: Path, *, now: datetime | None = None) -> Iterator[WindowResult]:
    """The same one by one, each after it was written."""
    order = read_order(data)
    if order is None:
        return
    with locked(_lock(data), wait=True):
        job = Job(data, order, now or datetime.now(UTC))
        failure = None
        for revision in order.revisions:
            try:
                yield from _each_due_of(job, revision)
            except StorageUnavailable as error:
                # Its windows wait until the storage answers; revisions whose rows are elsewhere do not.
                failure = error
        if failure is not None:
            raise failure


def _each_due_of(job: Job, revision: MonitoredRevision) -> Iterator[WindowResult]:
    seal(job, revision)
    times = RowTimes(job.captures, revision.number)
    for kind in KINDS:
        if kind in revision.windows:
            yield from _judge_all(job, revision, kind, _due(job, revision, kind, times), times)
    yield from _judge_again(job, revision, times)
    # Afterwards, so that rows of a long downtime are judged before their time is over.
    share(job, revision)
    expire(job, revision)


def backfill(
    data: Path, start: datetime, end: datetime, *, redo: bool = False, revision: int = 0
) -> list[WindowResult]:
    """Judge the windows between two times that have no result.

    Args:
        redo: also judge those again that have one; the new results supersede the old ones.
        revision: only of this one; 0 = of all.
    """
    order = read_order(data)
    if order is None:
        return []
    written: list[WindowResult] = []
    with locked(_lock(data), wait=True):
        job = Job(data, order, datetime.now(UTC))
        for each in order.revisions:
            if revision not in (0, each.number):
                continue
            times = RowTimes(job.captures, each.number)
            for kind in KINDS:
                if kind not in each.windows:
                    continue
                inside = [w for w in _due(job, each, kind, times) if start <= w.start and w.end <= end]
                written += _judge_all(job, each, kind, inside, times)
                if redo:
                    done = {(result.start, result.number) for result in written}
                    for result in job.results.results(each.number, kind):
                        window = window_of(result)
                        if (
                            start <= window.start
                            and window.end <= end
                            and (result.start, result.number) not in done
                        ):
                            written += _judge_all(
                                job, each, kind, [times.counted(window)], times, result.number + 1
                            )
    return written


def seal(job: Job, revision: MonitoredRevision) -> None:
    """Seal what no server writes any more."""
    try:
        job.captures.seal(revision.number)
    except (OSError, DeployError) as error:
        # It is tried again in every round; windows read open streams as well.
        _LOG.warning("captured rows of revision %d were not sealed: %s", revision.number, error)


def share(job: Job, revision: MonitoredRevision) -> None:
    """Move sealed rows to shared storage, where the capture's settings name one; those that the next windows
    are compared with stay here too."""
    latest = [job.results.latest(revision.number, kind) for kind in KINDS if kind in revision.windows]
    starts = [datetime.fromisoformat(each.start) for each in latest if each is not None]
    try:
        job.captures.share(
            revision.number, needed_from=min(starts) if len(starts) == len(latest) and starts else None
        )
    except (OSError, DeployError) as error:
        # They stay here, and it is tried again in every round.
        _LOG.warning("captured rows of revision %d were not uploaded: %s", revision.number, error)


def expire(job: Job, revision: MonitoredRevision) -> None:
    """Remove what is older or larger than the capture's settings allow."""
    limits = capture_of(revision)
    days, size = float(limits.get("max_days") or 0), int(limits.get("max_bytes") or 0)
    try:
        job.captures.expire(
            revision.number,
            now=job.now,
            max_age=timedelta(days=days) if days else None,
            max_bytes=size or None,
        )
    except (OSError, DeployError) as error:
        _LOG.warning("old captured rows of revision %d were not removed: %s", revision.number, error)


def window_of(result: WindowResult) -> Window:
    """The window of a result."""
    return Window(datetime.fromisoformat(result.start), datetime.fromisoformat(result.end), result.rows)


# --- which windows -----------------------------------------------------------------------------------------


def _due(job: Job, revision: MonitoredRevision, kind: MonitorKind, times: RowTimes) -> list[Window]:
    window = revision.windows[kind]
    judged: dict[datetime, datetime]
    if row_count(window):
        known = [window_of(result) for result in job.results.results(revision.number, kind)]
        judged = {each.start: each.end for each in known}
    else:
        judged = {start: start for start in job.results.starts(revision.number, kind)}
    return final_windows(
        window,
        times.unjudged(window, judged),
        since=datetime.fromisoformat(revision.since),
        until=job.now - timedelta(seconds=revision.graces[kind]),
        active=revision.active,
        judged=judged,
    )


def _judge_all(
    job: Job,
    revision: MonitoredRevision,
    kind: MonitorKind,
    windows: list[Window],
    times: RowTimes,
    number: int = 1,
) -> Iterator[WindowResult]:
    for window in windows:
        place = job.results.place(revision.number, kind)
        place.mkdir(parents=True, exist_ok=True)
        trying = place / f".{stem(window.start, number)}.trying"
        attempts = int(trying.read_text() or 0) + 1 if trying.exists() else 1
        # It counts deaths of this process, not losses of power, so no window waits for the disk here.
        write_atomic(trying, str(attempts).encode(), lasting=False)
        if attempts > MAX_ATTEMPTS:
            why = f"judging this window ended without a result {MAX_ATTEMPTS} times"
            finding = Finding(state="error", summary=why, reasons=(why,))
        else:
            try:
                finding = _finding(job, revision, kind, window, times)
            except StorageUnavailable:
                # That is nothing about the window, which is judged when the storage answers.
                trying.unlink(missing_ok=True)
                raise
        result = _result(job, revision, kind, window, finding, number)
        if job.results.commit(result, finding.page):
            yield result
        trying.unlink(missing_ok=True)


def _judge_again(job: Job, revision: MonitoredRevision, times: RowTimes) -> Iterator[WindowResult]:
    """New results of performance windows whose labels changed since the last one."""
    if "performance" not in revision.windows:
        return
    place = job.results.place(revision.number, "performance")
    seen = place / _SEEN
    if not place.is_dir() or (seen.exists() and seen.read_text() == job.fingerprint):
        return
    if job.labels.num_rows:
        wait = timedelta(seconds=duration_seconds(spec_of(revision).label_wait))
        for last in job.results.results(revision.number, "performance"):
            window = times.counted(window_of(last))
            if not window.rows or window.end < job.now - wait:
                continue
            finding = _finding(job, revision, "performance", window, times)
            if _same_labels(last, finding):
                continue
            result = _result(job, revision, "performance", window, finding, last.number + 1)
            if job.results.commit(result, finding.page):
                yield result
    write_atomic(seen, job.fingerprint.encode())


def _same_labels(last: WindowResult, finding: Finding) -> bool:
    counts = ("labels.matched", "labels.conflicting", "labels.duplicates", "labels.superseded")
    return finding.state == "error" or all(
        last.values.get(name, 0.0) == finding.values.get(name, 0.0) for name in counts
    )


# --- one window --------------------------------------------------------------------------------------------


def _finding(
    job: Job, revision: MonitoredRevision, kind: MonitorKind, window: Window, times: RowTimes
) -> Finding:
    """The finding of a window; whatever is wrong with its rows is a finding too."""
    try:
        return _judged(job, revision, kind, window, times)
    except StorageUnavailable:
        raise
    except DeployError as error:
        return Finding(state="error", summary=error.text, reasons=(error.text,))
    except Exception as error:  # noqa: BLE001 - the traceback is logged, the text is the verdict
        # A window must never end the job: the next one may be fine.
        _LOG.exception("the %s monitor failed", kind)
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return Finding(state="error", summary=f"The monitor failed: {why}", reasons=(why,))


def _judged(
    job: Job, revision: MonitoredRevision, kind: MonitorKind, window: Window, times: RowTimes
) -> Finding:
    spec = spec_of(revision)
    before = micros(job.now - timedelta(seconds=revision.graces[kind]))
    reference, part_until = reference_of(
        job.data, job.captures, revision.number, spec, capture_of(revision), times, before
    )
    title = f"{job.order.deployment}, revision {revision.number}: {kind} from {_shown(window)}"
    if kind == "performance":
        return judge_performance(
            job.captures,
            revision.number,
            window,
            reference.profile,
            spec,
            job.labels,
            title,
            key=str(capture_of(revision).get("key") or REQUEST_ID),
        )
    if window.rows and part_until is not None and window.end <= part_until:
        why = f"The rows of this window are a part of the reference: {reference.source}"
        return Finding(state="no_reference", summary=why, reasons=(why,))
    features = [column.name for column in reference.profile.columns] if reference.profile else []
    rows = WindowRows(job.captures.table(revision.number, window.start, window.end), features)
    previous = _previous(job, revision, window, features, spec)
    finding = judge_drift(rows, reference, spec, previous, title)
    late = _late(job, revision, kind, window, times)
    if not late:
        return finding
    return Finding(**{**vars(finding), "notes": (*finding.notes, late)})


def _previous(
    job: Job, revision: MonitoredRevision, window: Window, features: list[str], spec: MonitorSpec
) -> WindowRows | None:
    """The rows of the window before, None without any."""
    if not spec.drift.previous:
        return None
    last = job.results.before(revision.number, "drift", window.start)
    if last is None or not last.rows:
        return None
    return WindowRows(
        job.captures.table(revision.number, *map(datetime.fromisoformat, (last.start, last.end))), features
    )


def _late(job: Job, revision: MonitoredRevision, kind: MonitorKind, window: Window, times: RowTimes) -> str:
    """What came into the window before after its verdict, in words; rows of a clock that went back are such."""
    last = job.results.before(revision.number, kind, window.start)
    if last is None:
        return ""
    there = times.between(window_of(last))
    if there <= last.rows:
        return ""
    return (
        f"{there - last.rows} rows of the window before came after its verdict, or a clock went back; "
        "`mlflow-deploy monitor backfill --redo` judges it again"
    )


def _result(
    job: Job, revision: MonitoredRevision, kind: MonitorKind, window: Window, finding: Finding, number: int
) -> WindowResult:
    return WindowResult(
        deployment=job.order.deployment,
        revision=revision.number,
        kind=kind,
        start=window.start.isoformat(),
        end=window.end.isoformat(),
        rows=window.rows,
        labels=finding.labels,
        state=finding.state,
        summary=finding.summary,
        reasons=finding.reasons,
        values=dict(finding.values),
        columns={name: dict(values) for name, values in finding.columns.items()},
        report=f"{stem(window.start, number)}.html" if finding.page else "",
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        number=number,
        notes=finding.notes,
    )


def spec_of(revision: MonitoredRevision) -> MonitorSpec:
    """The monitors' settings of a revision."""
    return DeploymentSpec.model_validate(revision.settings).monitor


def capture_of(revision: MonitoredRevision) -> Mapping[str, Any]:
    """The capture's settings of a revision."""
    found: Mapping[str, Any] = revision.settings.get("capture") or {}
    return found


def _shown(window: Window) -> str:
    return f"{window.start:%Y-%m-%d %H:%M:%S} to {window.end:%Y-%m-%d %H:%M:%S} UTC"


def _lock(data: Path) -> Path:
    folder = ResultStore(data).folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder / _LOCK
