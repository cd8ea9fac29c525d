"""Metrics of the controller, for Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_deploy.lifecycle.controller.reconcile import Event
    from mlflow_deploy.lifecycle.controller.state import Seen

_PREFIX = "mlflow_deploy_controller_"


class ControllerMetrics:
    """What the controller tells of itself."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(_PREFIX + name, text, registry=self._registry)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(_PREFIX + name, text, [label], registry=self._registry)

        self.acting = gauge("acting", "1 while this controller acts, 0 while another one does.")
        self._up = gauge("registry_up", "Whether the registry answered the last look.")
        self._last = gauge("last_look_timestamp_seconds", "When the last look ended.")
        self._good = gauge("last_good_look_timestamp_seconds", "When the registry was last looked at whole.")
        self._seconds = gauge("last_look_seconds", "How long the last look took.")
        self._deployments = gauge("deployments", "Stages whose version is deployed.")
        self._refused = gauge("refused", "Stages whose version is refused now.")
        self.records_waiting = gauge("records_waiting", "Release records that MLflow does not have yet.")
        self._events = counter("events", "What the controller did, by action.", "action")
        self.hints = counter("hints", "Hints that came, by what saw it.", "source")
        self.webhooks = counter("webhooks", "Webhooks that came, by HTTP status.", "status")

    def looked(self, seconds: float, *, up: bool, events: Iterable[Event], seen: Iterable[Seen]) -> None:
        """Note a look at the registry.

        Args:
            seconds: how long it took.
            up: whether the registry answered.
            events: what was done.
            seen: what is remembered of the stages after it.
        """
        now, stages = time.time(), list(seen)
        self._up.set(up)
        self._last.set(now)
        self._seconds.set(seconds)
        if up:
            self._good.set(now)
        for event in events:
            self._events.labels(event.action).inc()
        self._deployments.set(sum(bool(each.settled and each.deployment) for each in stages))
        self._refused.set(sum(bool(each.refused) for each in stages))

    def text(self) -> bytes:
        """The exposition of this moment."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
