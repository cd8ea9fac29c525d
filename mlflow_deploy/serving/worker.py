"""One worker's state: what it serves, and the way from loading over warm-up to ready."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

import mlflow_deploy
from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.backends.base import Call, load_model
from mlflow_deploy.serving.config import ServerConfig
from mlflow_deploy.serving.dataplane import DataPlane
from mlflow_deploy.serving.logs import logger
from mlflow_deploy.serving.metrics import SharedMetrics, WorkerMetrics
from mlflow_deploy.serving.recorder import Recorder, SharedRecorder

if TYPE_CHECKING:
    from mlflow_deploy.serving.capture import Capture
    from mlflow_deploy.serving.tracing import Tracing

_TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Launch:
    """What the parent hands to each worker.

    Attributes:
        bundle: the verified bundle.
        config: the server's configuration.
        shared: counters that all workers share.
        recorder: the rings that all workers record into.
    """

    bundle: Bundle
    config: ServerConfig
    shared: SharedMetrics
    recorder: SharedRecorder


class Worker:
    """The state that all protocols of one worker process share; `plane` is None until the model is ready."""

    def __init__(self, launch: Launch, number: int) -> None:
        self.bundle = launch.bundle
        self.config = launch.config
        self.settings = launch.config.serving
        self.metrics = WorkerMetrics(launch.shared, number)
        self.recorder = Recorder(launch.recorder, number)
        self.plane: DataPlane | None = None
        self.capture: Capture | None = None
        self.tracing: Tracing | None = None
        if launch.config.data and launch.config.capture.enabled:
            from mlflow_deploy.serving.capture import Capture

            self.capture = Capture(launch.bundle, launch.config)

    @property
    def ready(self) -> bool:
        """The model is loaded and the server is not stopping."""
        return self.plane is not None and not self.metrics.shared.draining

    def load(self) -> None:
        """Load the model and warm it up, then say ready.

        Raises:
            Exception: whatever goes wrong; the server must not become ready then.
        """
        begun = time.perf_counter()
        threading.Thread(target=self._tick, name="tick", daemon=True).start()
        model = load_model(self.bundle, self.settings)
        plane = DataPlane(model, self.settings)
        if self.settings.warm_up:
            _warm_up(plane, self.bundle)
        if self.capture is not None:
            plane.captures, plane.keep = True, self.capture.keep
            self.capture.start(model, self.metrics)
        seconds = time.perf_counter() - begun
        self.metrics.loaded(seconds)
        self.plane = plane
        # What was loaded stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        logger().info("ready", extra={"fields": {"seconds": round(seconds, 3), **self.identity}})

    def _tick(self) -> None:
        """End overdue calls and keep counters and gauges true, at little cost for each request."""
        while True:
            plane = self.plane
            if plane is not None:
                plane.tick()
                self.metrics.gauges(plane.admission.active, plane.admission.waiting)
            self.metrics.flush()
            self.recorder.refresh()
            time.sleep(_TICK_SECONDS)

    @property
    def identity(self) -> dict[str, str]:
        """Who is serving what."""
        manifest = self.bundle.manifest
        return {
            "deployment": self.config.deployment,
            "revision": str(self.config.revision),
            "model_name": manifest.model.name,
            "model_version": manifest.model.version,
            "bundle": self.bundle.digest,
            "format": manifest.format,
        }

    @property
    def info(self) -> dict[str, str]:
        """The labels of the info metric."""
        return {**self.identity, "provider": self.plane.model.providers[0] if self.plane else ""}

    def version(self) -> dict[str, Any]:
        """The document of /version."""
        return {
            **self.identity,
            "revision": self.config.revision,
            "providers": list(self.plane.model.providers) if self.plane else [],
            "mlflow_deploy": mlflow_deploy.__version__,
            "pid": os.getpid(),
        }


class Clock:
    """The timing of a call that belongs to no request."""

    def __init__(self) -> None:
        self.arrived = time.perf_counter()
        self.call: Call | None = None


def _warm_up(plane: DataPlane, bundle: Bundle) -> None:
    """Send the input example through the data plane as a request would go, and compare the answer."""
    example = bundle.document("example.json")
    if not example or "request" not in example:
        return
    call = plane.model.parse_json(msgspec.json.encode(example["request"]))
    answer = msgspec.json.decode(plane.model.to_json(plane.predict(call, Clock())))
    expected = example.get("predictions")
    if isinstance(expected, dict) and set(expected) == {"predictions"}:
        expected = expected["predictions"]
    if expected is not None and not close(answer["predictions"], expected):
        logger().warning(
            "the model answers its input example differently from the native model; see parity.json"
        )


def close(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal within the precision of float32; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4) or (one != one and other != other)
    return bool(one == other)
