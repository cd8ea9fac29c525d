"""How many CPUs this process may use: the cgroup's quota and the affinity mask, never the host's number."""

from __future__ import annotations

import math
import os
from pathlib import Path

from mlflow_deploy.settings import ServingSettings

_CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(cgroup: Path = _CGROUP) -> int:
    """CPUs that this process may use, rounded up, at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def _quota_v2(cgroup: Path) -> float | None:
    text = _read(cgroup / "cpu.max").split()
    return int(text[0]) / int(text[1]) if len(text) == 2 and text[0] != "max" else None


def _quota_v1(cgroup: Path) -> float | None:
    quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(path: Path) -> str:
    # A missing file means that this version of cgroups, or cgroups at all, are not there.
    return path.read_text().strip() if path.is_file() else ""


def model_threads(serving: ServingSettings) -> int:
    """Threads of one worker that run the model at once."""
    return serving.threads or max(1, cpu_quota() // serving.workers)


def concurrency(serving: ServingSettings) -> int:
    """Requests that may be in the model at once in one worker."""
    return serving.max_concurrency or model_threads(serving) * max(1, serving.max_batch_size)
