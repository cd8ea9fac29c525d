"""The one way from a parsed call to its result: admission, deadline, batching, model, metrics."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Protocol

from mlflow_deploy.serving.admission import Admission
from mlflow_deploy.serving.backends.base import Call, Model
from mlflow_deploy.serving.errors import DeadlineExceeded
from mlflow_deploy.serving.tuning import concurrency
from mlflow_deploy.settings import ServingSettings


class Timing(Protocol):
    """Where the data plane notes what one request cost; a protocol's request is one."""

    arrived: float
    queued: float
    computed: float
    rows: int


class DataPlane:
    """Computes calls on one model for all protocols.

    Args:
        model: the loaded servable.
        settings: limits of concurrency, queue and time.
    """

    def __init__(self, model: Model, settings: ServingSettings) -> None:
        self.model = model
        self._deadline = settings.deadline_seconds
        self.admission = Admission(concurrency(settings), settings.queue_size, settings.deadline_seconds)

    def predict(self, call: Call, timing: Timing) -> Any:
        """The model's result for a call.

        Args:
            timing: the request; its `arrived` is `time.perf_counter()` at its arrival, the rest is filled in.

        Raises:
            RequestError: the server is busy, the deadline has passed, or the call does not fit the model.
            Exception: whatever the model raises.
        """
        admission = self.admission
        admission.enter(timing.arrived)
        try:
            begun = perf_counter()
            result = self.model.run(call)
            ended = perf_counter()
        finally:
            admission.leave()
        timing.queued = begun - timing.arrived
        timing.computed = ended - begun
        timing.rows = call.rows
        if self._deadline and ended - timing.arrived > self._deadline:
            raise DeadlineExceeded(self._deadline)
        return result
