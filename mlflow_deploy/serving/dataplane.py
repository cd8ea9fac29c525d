"""The one way from a parsed call to its result: admission, deadline, batching, model."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol

from mlflow_deploy.serving.admission import Admission
from mlflow_deploy.serving.backends.base import Call, Model, Stackable
from mlflow_deploy.serving.batching import Batcher
from mlflow_deploy.serving.errors import DeadlineExceeded, RequestError
from mlflow_deploy.serving.tensors import ModelInputs
from mlflow_deploy.serving.tuning import concurrency, model_threads
from mlflow_deploy.settings import ServingSettings


class Timing(Protocol):
    """Where the data plane notes what one request cost; a protocol's request is one."""

    arrived: float
    queued: float
    computed: float
    rows: int
    batch: int


class DataPlane:
    """Computes calls on one model for all protocols.

    Args:
        model: the loaded servable.
        settings: limits of concurrency, queue and time.
    """

    def __init__(self, model: Model, settings: ServingSettings) -> None:
        self.model = model
        self.inputs = ModelInputs(model)
        self._deadline = settings.deadline_seconds
        self.admission = Admission(concurrency(settings), settings.queue_size, settings.deadline_seconds)
        self._batcher: Batcher | None = None
        if settings.max_batch_size > 1 and isinstance(model, Stackable):
            self._batcher = Batcher(
                model, settings.max_batch_size, settings.max_batch_delay_ms / 1e3, model_threads(settings)
            )
        # A model that cannot be interrupted computes aside, so that its caller need not wait past the deadline.
        self._aside: ThreadPoolExecutor | None = None
        if self._deadline and not model.interruptible:
            self._aside = ThreadPoolExecutor(concurrency(settings), thread_name_prefix="model")

    def predict(self, call: Call, timing: Timing) -> Any:
        """The model's result for a call.

        Args:
            timing: the request; its `arrived` is `time.perf_counter()` at its arrival, the rest is filled in.

        Raises:
            RequestError: the server is busy, the deadline has passed, or the call does not fit the model.
            Exception: whatever the model raises.
        """
        deadline, admission = self._deadline, self.admission
        admission.enter(timing.arrived)
        if self._aside is not None:
            return self._predict_aside(self._aside, call, timing)
        call.begun = perf_counter()
        if deadline:
            call.expires = timing.arrived + deadline
        try:
            if self._batcher is not None and call.stackable:
                result = self._batcher.run(call, deadline)
            else:
                result = self.model.run(call)
                call.ended = perf_counter()
                call.batch = call.rows
        except RequestError:
            raise
        except Exception as error:
            if deadline and perf_counter() > call.expires:
                raise DeadlineExceeded(deadline) from error
            raise
        finally:
            admission.leave()
        timing.queued = call.begun - timing.arrived
        timing.computed = call.ended - call.begun
        timing.rows = call.rows
        timing.batch = call.batch
        if deadline and call.ended > call.expires:
            raise DeadlineExceeded(deadline)
        return result

    def _predict_aside(self, pool: ThreadPoolExecutor, call: Call, timing: Timing) -> Any:
        begun = perf_counter()
        future: Future[Any] = pool.submit(self.model.run, call)
        # The slot is taken as long as the model computes, even when its caller has gone.
        future.add_done_callback(lambda _: self.admission.leave())
        try:
            result = future.result(timeout=max(0.0, timing.arrived + self._deadline - begun))
        except TimeoutError as error:
            if future.done():
                raise
            raise DeadlineExceeded(self._deadline) from error
        timing.queued = begun - timing.arrived
        timing.computed = perf_counter() - begun
        timing.rows = timing.batch = call.rows
        return result

    def tick(self) -> None:
        """Stop calls that are past their deadline; called a few times a second."""
        self.model.expire(perf_counter())
