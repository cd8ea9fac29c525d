"""Hand the results of monitors over to what tells people and acts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mlflow_deploy.errors import DeployError
from mlflow_deploy.monitoring.action_requests import act_by_program
from mlflow_deploy.monitoring.actions import after_window, work_off
from mlflow_deploy.monitoring.jobs import spec_of
from mlflow_deploy.monitoring.orders import acts_itself, read_order
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import KINDS, ResultStore

_LAST = 20
_LOG = logging.getLogger("mlflow_deploy.monitor")


def follow_up(data: Path, written: Sequence[WindowResult] = ()) -> None:
    """Take in the results that were not, then send and do what is due.

    Args:
        written: results of this round; the latest ones are taken in anyway, since a kill may have come between.
    """
    order = read_order(data)
    if order is None:
        return
    results = ResultStore(data)
    try:
        for revision in order.revisions:
            if not revision.active:
                continue
            spec = spec_of(revision)
            for kind in KINDS:
                new = [each for each in written if (each.revision, each.kind) == (revision.number, kind)]
                # One that was taken in before changes nothing.
                for result in [*results.last(revision.number, kind, _LAST), *new]:
                    after_window(data, result, spec.alert, spec.action)
        newest = spec_of(max(order.revisions, key=lambda each: (each.active, each.number)))
        act = act_by_program(order.target) if acts_itself(order) else None
        work_off(data, order.deployment, newest.alert, newest.action, act=act)
    except DeployError as error:
        _LOG.error("alerts: %s", error.text)
