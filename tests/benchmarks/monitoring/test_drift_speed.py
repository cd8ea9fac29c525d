"""Drift of a million rows with 30 mixed columns: time, memory, and how much faster than Evidently.

`make bench-monitoring` prints the measurements and fails below the bars.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy.monitoring import build_profile, detect_drift
from tests.unit.monitoring.planted import REFERENCE_ROWS, wide_flights

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, PEER_ROWS, MANY_ROWS = 1_000_000, 100_000, 20_000_000
MEASURED = """
import json, sys, time
import numpy, pyarrow.parquet, pyarrow.compute
from mlflow_deploy.monitoring import ReferenceProfile, detect_drift
def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

profile = ReferenceProfile.from_json(open(sys.argv[1]).read())
before = peak_mib()
start = time.perf_counter()
report = detect_drift(profile, sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps({"rows": report.rows, "seconds": seconds, "mib": peak_mib() - before}))
"""


def measured(profile: Path, rows: Path) -> dict[str, float]:
    """Time and peak memory above the imports, in a process of its own.

    The peak is VmHWM: ru_maxrss of a started process begins at the peak of the one that started it.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(profile), str(rows)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    print(f"\n{found['rows']:,.0f} rows: {found['seconds']:.2f} s, {found['mib']:.0f} MiB above the imports")
    return found


def test_a_million_rows_of_30_columns(tmp_path: Path) -> None:
    evidently = pytest.importorskip("evidently")
    from evidently.presets import DataDriftPreset

    flights = wide_flights()
    reference = flights.sample(REFERENCE_ROWS, random_state=1)
    (tmp_path / "profile.json").write_text(build_profile(reference).to_json())
    rows = flights.sample(ROWS, replace=True, random_state=2).reset_index(drop=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    ours = min((measured(tmp_path / "profile.json", tmp_path / "rows.parquet") for _ in range(3)),
               key=lambda found: found["seconds"])  # fmt: skip
    part = rows.head(PEER_ROWS)
    start = time.perf_counter()
    evidently.Report([DataDriftPreset()]).run(part, flights.sample(PEER_ROWS, random_state=3))
    theirs = (time.perf_counter() - start) * ROWS / PEER_ROWS
    gain = theirs / ours["seconds"]
    print(
        f"Evidently's DataDriftPreset on {PEER_ROWS:,} rows, scaled: {theirs:.0f} s; ours is {gain:.0f}x faster"
    )
    assert ours["seconds"] < 3.0
    assert 1 < ours["mib"] < 500
    assert gain >= 30


def test_twenty_million_rows_take_no_more_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({f"x{index}": rng.normal(size=1_000_000) for index in range(10)})
    with pq.ParquetWriter(tmp_path / "rows.parquet", rows.schema, compression="none") as writer:
        for _ in range(MANY_ROWS // rows.num_rows):
            writer.write_table(rows)
    profile = build_profile(rows.slice(0, REFERENCE_ROWS))
    (tmp_path / "profile.json").write_text(profile.to_json())
    found = measured(tmp_path / "profile.json", tmp_path / "rows.parquet")
    assert found["rows"] == MANY_ROWS
    assert found["mib"] > 1
    assert found["mib"] < 500
    assert not detect_drift(profile, rows).drifted
