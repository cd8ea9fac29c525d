"""Tells a rollout how often each revision was right, where labels for captured answers come."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import MonitorFailed
from mlflow_deploy.lifecycle.steps import Progress
from mlflow_deploy.rollout.quality import Labels, Outcomes
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord

_EVERY_SECONDS = 5.0
# Reading labels takes a process of its own, which shall not take part of the machine that is being measured.
_LEAST_PAUSE = 10.0


def label_source(
    target: Target, record: DeploymentRecord, spec: DeploymentSpec, progress: Progress
) -> Labels | None:
    """Counts right and wrong answers from now on; None where no answers are kept, or no monitor reads them.

    A monitor that does not answer is told once and takes no candidate back: what was read before counts on.

    Args:
        record: of the deployment that is updated.
        spec: settings of the candidate.
    """
    if Capability.MONITORS not in target.capabilities or not spec.capture.enabled:
        return None
    if target.monitor_state(record) != "running":
        return None
    arguments = ["outcomes", "--start", datetime.now(UTC).isoformat()]
    arguments += ["--tolerance", str(spec.analysis.quality_tolerance)]
    if spec.capture.key:
        arguments += ["--key", spec.capture.key]
    known: dict[int, Outcomes] = {}
    due, told = 0.0, False

    def ask() -> dict[int, Outcomes]:
        nonlocal known, due, told
        if (begun := time.monotonic()) >= due:
            try:
                counts = json.loads(target.ask_monitor(record, arguments))
                known = {int(number): Outcomes(*both) for number, both in counts.items()}
            except MonitorFailed as error:
                if not told:
                    progress(f"The labels cannot be read, so newer ones do not count: {error.text}")
                told = True
            took = time.monotonic() - begun
            due = begun + max(_EVERY_SECONDS, _LEAST_PAUSE * took)
        return known

    return ask
