"""What the windows of a revision are compared with: the bundle's profile, or the first captured rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from mlflow_deploy.config_monitor import MonitorSpec
from mlflow_deploy.errors import DataError
from mlflow_deploy.files import write_atomic
from mlflow_deploy.monitoring.captured import TIME, CaptureStore
from mlflow_deploy.monitoring.drift_verdict import Reference
from mlflow_deploy.monitoring.profile import ReferenceProfile, build_profile
from mlflow_deploy.monitoring.segments import build_segment_profiles
from mlflow_deploy.monitoring.window_rows import Rows, WindowRows, answered
from mlflow_deploy.monitoring.windows import Micros, moment
from mlflow_deploy.targets.base_monitor import profile_path

_FIRST = "first_rows.json"


class FirstRows(msgspec.Struct, frozen=True, kw_only=True):
    """Profiles of the first captured rows of a revision; made once.

    Attributes:
        rows: how many they are.
        until: time of the last of them, UTC, ISO 8601.
        profile: as JSON.
        segments: value of the segment column -> profile as JSON.
        note: why there are no segments although they were asked for.
    """

    rows: int
    until: str
    profile: str
    segments: dict[str, str] = {}
    note: str = ""


def reference_of(
    data: Path,
    captures: CaptureStore,
    revision: int,
    spec: MonitorSpec,
    capture: Mapping[str, Any],
    times: Iterable[Micros],
    before: int,
) -> tuple[Reference, datetime | None]:
    """The reference of a revision, and until when captured rows are a part of it.

    Args:
        data: the deployment's data folder.
        capture: the settings of the capture: what it leaves out is no drift.
        times: of the captured rows.
        before: only rows before this time, in microseconds since the epoch, are sure to be all there.
    """
    path = profile_path(data, revision)
    frozen = ReferenceProfile.from_json(path.read_bytes()) if path.exists() else None
    if frozen is not None:
        frozen = _as_captured(frozen, capture)
    if frozen is not None and not spec.drift.segment:
        return Reference(profile=frozen, source="the reference profile of the version"), None
    first = _first_rows(data, captures, revision, spec, times, before)
    segments = None
    if first is not None and first.segments:
        segments = {name: ReferenceProfile.from_json(text) for name, text in first.segments.items()}
    if frozen is not None:
        source = "the reference profile of the version"
        if first is not None and spec.drift.segment:
            source += f", its segments with the first {first.rows} captured rows"
            source += f" ({first.note})" if first.note else ""
        return Reference(profile=frozen, source=source, segments=segments), None
    if first is None:
        there = sum(int((part < before).sum()) for part in times)
        why = f"the first {spec.reference_rows} captured rows become it, {there} are there"
        return Reference(profile=None, source=f"The version has no reference profile; {why}"), None
    return Reference(
        profile=ReferenceProfile.from_json(first.profile),
        source=f"the first {first.rows} captured rows, because the version has no reference profile",
        segments=segments,
    ), datetime.fromisoformat(first.until)


def _as_captured(profile: ReferenceProfile, capture: Mapping[str, Any]) -> ReferenceProfile:
    """The profile without the columns that are not captured, or only as hashes."""
    only = set(capture.get("columns") or ())
    without = {*(capture.get("exclude") or ()), *(capture.get("hash") or ())}
    kept = tuple(
        column
        for column in profile.columns
        if column.name not in without and (not only or column.name in only)
    )
    if len(kept) == len(profile.columns):
        return profile
    return replace(profile, columns=kept, multivariate=None)


def _first_rows(
    data: Path, captures: CaptureStore, revision: int, spec: MonitorSpec, times: Iterable[Micros], before: int
) -> FirstRows | None:
    path = profile_path(data, revision).with_name(_FIRST)
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=FirstRows)
    rows = _read_first(captures, revision, spec.reference_rows, times, before)
    if rows is None:
        return None
    view = WindowRows(Rows(rows, rows.column_names))
    segments: dict[str, str] = {}
    note = ""
    if spec.drift.segment:
        try:
            profiles = build_segment_profiles(view, spec.drift.segment)
            segments = {name: profile.to_json() for name, profile in profiles.items()}
        except DataError as error:
            note = error.text
    made = FirstRows(
        rows=rows.num_rows,
        until=rows.column(TIME)[-1].as_py().isoformat(),
        profile=build_profile(view, predictions=view.prediction()).to_json(),
        segments=segments,
        note=note,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.encode(made), mode=0o640)
    return made


def _read_first(
    captures: CaptureStore, revision: int, count: int, times: Iterable[Micros], before: int
) -> pa.Table | None:
    """The first answered rows in the order of their times, None when there are not that many."""
    there = sum(int((part < before).sum()) for part in times)
    wanted = count
    while there >= wanted:
        # Failed requests are no reference, so more rows may have to be looked at.
        ordered = _earliest(wanted, times, before)
        rows = answered(
            captures.read(revision, moment(int(ordered[0])), moment(int(ordered[wanted - 1]) + 1))
        ).sort_by(TIME)
        if rows.num_rows >= count:
            return rows.slice(0, count)
        if wanted == there:
            return None
        wanted = min(2 * wanted, there)
    return None


def _earliest(count: int, times: Iterable[Micros], before: int) -> Micros:
    """The earliest times, rising; not much more than them is in memory."""
    kept = np.empty(0, np.int64)
    for part in times:
        kept = np.sort(np.concatenate((kept, part[part < before])))[:count]
    return kept
