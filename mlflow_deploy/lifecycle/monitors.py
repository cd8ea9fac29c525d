"""How the monitors of a deployment stand."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord


def monitors(target: Target, record: DeploymentRecord) -> dict[str, Any]:
    """The state of the job, and one entry per revision and monitor, as plain values.

    Raises:
        DeployError: the job cannot be asked.
    """
    job = target.monitor_state(record)
    if Capability.MONITORS not in target.capabilities or job == "off":
        return {"deployment": record.name, "job": "off", "monitors": []}
    found = json.loads(target.ask_monitor(record, ["status"]))
    return {"deployment": record.name, "job": job, "monitors": found}


def land_from_here(target: Target, record: DeploymentRecord) -> dict[str, Any]:
    """Log the results that the job cannot log, such as into a file of this machine from a container.

    Returns:
        `LandReport` as plain values.

    Raises:
        DeployError: the job cannot be asked.
    """
    from mlflow_deploy.monitoring.hand_over import lay_down, marks_of
    from mlflow_deploy.monitoring.landing import land

    handed = json.loads(target.ask_monitor(record, ["pull"]))
    servers = {each.number: (each.tracking_uri, each.registry_uri) for each in record.revisions}
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        lay_down(Path(work), handed, servers)
        # MLflow prints the addresses of runs.
        with contextlib.redirect_stdout(sys.stderr):
            report = land(Path(work))
        marks = marks_of(Path(work))
    # Without any, too: until then the job leaves the results to this command.
    target.ask_monitor(record, ["mark", "--marks", json.dumps(marks)])
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def attached(target: Target, record: DeploymentRecord) -> dict[str, Any]:
    """What a deployment's description says of its monitors; asks nothing of the job."""
    spec = record.stable.settings.monitor
    if Capability.MONITORS not in target.capabilities:
        return {"job": "off", "kinds": [], "window": ""}
    return {"job": target.monitor_state(record), "kinds": list(spec.kinds), "window": spec.window}
