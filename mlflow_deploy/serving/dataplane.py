"""The one way from a parsed call to its result: admission, deadline, batching, model."""

from __future__ import annotations

from collections.abc import Callable
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

Resume = Callable[[Any, Exception | None], None]
"""Takes the answer to a request, or why there is none, from whichever thread has it; raises nothing."""


class Asking(Protocol):
    """Who asks for a prediction: a protocol's request."""

    arrived: float
    call: Call | None


class DataPlane:
    """Computes calls on one model for all protocols.

    Args:
        model: the loaded servable.
        settings: limits of concurrency, queue and time.
    """

    def __init__(self, model: Model, settings: ServingSettings) -> None:
        self.model = model
        self.inputs = ModelInputs(model)
        # Whether calls keep what they ask and their answers, for the capture.
        self.captures = False
        # Makes what a call asks safe from a model that changes it; None when no model does.
        self.keep: Callable[[Any], Any] | None = None
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

    def predict(self, call: Call, request: Asking) -> Any:
        """The model's result for a call.

        Args:
            request: who asks; its `arrived` is `time.perf_counter()` at its arrival, its `call` is set.

        Raises:
            RequestError: the server is busy, the deadline has passed, or the call does not fit the model.
            Exception: whatever the model raises.
        """
        deadline, admission = self._deadline, self.admission
        admission.enter(request.arrived)
        request.call = call
        if self.captures:
            call.asked = call.data if self.keep is None else self.keep(call.data)
        if self._aside is not None:
            return self._predict_aside(self._aside, call, request)
        call.begun = perf_counter()
        if deadline:
            call.expires = request.arrived + deadline
        try:
            batcher = self._batcher
            if batcher is not None and call.stackable and batcher.worth.stack(call.rows):
                result = batcher.run(call, deadline)
            else:
                result = self.model.run(call)
                call.ended = perf_counter()
                call.batch = call.rows
                if batcher is not None:
                    batcher.worth.alone(call.rows, call.ended - call.begun)
        except RequestError:
            raise
        except Exception as error:
            if deadline and perf_counter() > call.expires:
                raise DeadlineExceeded(deadline) from error
            raise
        finally:
            admission.leave()
            # The call lives on until it is counted; its data need not.
            call.data = None
        if deadline and call.ended > call.expires:
            raise DeadlineExceeded(deadline)
        if self.captures:
            call.answer = result
        return result

    def collect(self, call: Call, request: Asking, finish: Callable[[Any], Any], resume: Resume) -> bool:
        """Have the call computed together with others, without a thread that waits for it.

        Args:
            finish: makes the answer from the result.
            resume: is given the answer, or the exception that `predict` would raise.

        Returns:
            False when this call should go through `predict`, because batches do not pay, or the model is busy.
        """
        batcher = self._batcher
        if batcher is None or not call.stackable:
            return False
        if not batcher.worth.stack(call.rows):
            call.stackable = ()
            return False
        if not self.admission.enter_at_once():
            return False
        request.call = call
        if self.captures:
            call.asked = call.data if self.keep is None else self.keep(call.data)
        call.begun = perf_counter()
        if self._deadline:
            call.expires = request.arrived + self._deadline

        def done(result: Any, error: Exception | None) -> None:
            self.admission.leave()
            call.data = None
            try:
                if self._deadline and perf_counter() > call.expires and not isinstance(error, RequestError):
                    raise DeadlineExceeded(self._deadline) from error
                if error is not None:
                    raise error
                if self.captures:
                    call.answer = result
                answer = finish(result)
            except Exception as raised:  # noqa: BLE001 - it becomes an answer and a log line
                resume(None, raised)
            else:
                resume(answer, None)

        batcher.submit(call, done)
        return True

    def _predict_aside(self, pool: ThreadPoolExecutor, call: Call, request: Asking) -> Any:
        call.begun = begun = perf_counter()
        future: Future[Any] = pool.submit(self.model.run, call)
        # The slot is taken as long as the model computes, even when its caller has gone.
        future.add_done_callback(lambda _: self.admission.leave())
        try:
            result = future.result(timeout=max(0.0, request.arrived + self._deadline - begun))
        except TimeoutError as error:
            if future.done():
                raise
            raise DeadlineExceeded(self._deadline) from error
        call.ended = perf_counter()
        call.batch = call.rows
        call.data = None
        if self.captures:
            call.answer = result
        return result

    def tick(self) -> None:
        """Stop calls that are past their deadline; called a few times a second."""
        now = perf_counter()
        self.model.expire(now)
        if self._batcher is not None:
            self._batcher.expire(now)
