"""A deployment's data folder as servers and targets leave it: captured rows, an order, maybe a profile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy.config import parse_spec
from mlflow_deploy.monitoring import build_profile
from mlflow_deploy.targets.base_monitor import MonitoredRevision, MonitorOrder, order_path, profile_path

START = datetime(2026, 3, 1, 10, tzinfo=UTC)


def rows(
    count: int, hour: int, *, shift: float = 0.0, seed: int = 0, minutes: float = 60.0
) -> tuple[pa.Table, np.ndarray]:
    """Captured rows of an hour, and their true labels: 1 with the chance that the model says."""
    generator = np.random.default_rng((seed, hour))
    x = generator.normal(shift, 1.0, count)
    chance = 1.0 / (1.0 + np.exp(-x))
    start = START + timedelta(hours=hour)
    times = [start + timedelta(minutes=minutes * at / count) for at in range(count)]
    table = pa.table(
        {
            "_request_id": [f"h{hour}-{at}" for at in range(count)],
            "_row": pa.array(np.zeros(count), pa.int32()),
            "_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "_latency_ms": pa.array(generator.exponential(3.0, count), pa.float32()),
            "_status": pa.array(np.full(count, 200), pa.int16()),
            "x": x,
            "z": generator.choice(list("abc"), count),
            "prediction": (chance > 0.5).astype(np.int64),
            "probability_0": 1.0 - chance,
            "probability_1": chance,
        }
    )
    return table, (generator.random(count) < chance).astype(np.int64)


def capture(data: Path, table: pa.Table, name: str, revision: int = 1) -> None:
    """Put rows where sealed files are."""
    folder = data / "capture" / f"rev-{revision}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet")


def order(data: Path, *, profile: bool = True, active: bool = True, uri: str = "", **config: Any) -> None:
    """Write the order of deployment `d1` with revision 1, made at START."""
    spec = parse_spec({"monitor.min_rows": 100, **config})
    revision = MonitoredRevision(
        number=1,
        since=START.isoformat(),
        active=active,
        bundle="sha256-0123456789",
        windows={kind: spec.monitor.window_of(kind) for kind in spec.monitor.kinds},
        graces={kind: spec.monitor.grace_of(kind) for kind in spec.monitor.kinds},
        tracking_uri=uri,
        registry_uri=uri,
        settings=spec.model_dump(mode="json"),
    )
    wanted = MonitorOrder(
        deployment="d1", created_at=START.isoformat(), target="local", revisions=(revision,)
    )
    place = profile_path(data, 1)
    place.parent.mkdir(parents=True, exist_ok=True)
    order_path(data).write_bytes(msgspec.json.encode(wanted))
    if profile:
        table, labels = rows(3000, 0, seed=99)
        place.write_text(
            build_profile(
                table.select(["x", "z"]),
                predictions=table["prediction"],
                labels=labels,
                probabilities=table["probability_1"].to_numpy(),
                classes=[0, 1],
            ).to_json()
        )
