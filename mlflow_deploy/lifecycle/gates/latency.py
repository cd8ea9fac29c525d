"""Gate `latency`: the bundle's server answers within the budget on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
import numpy as np
from pydantic import Field, model_validator

from mlflow_deploy.errors import PredictionError
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed, skipped
from mlflow_deploy.lifecycle.gates.smoke import EXAMPLE

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext
    from mlflow_deploy.lifecycle.gates.server import GateServer

_WARM_UP = 10


class LatencySettings(GateSettings):
    """What the policy may say of gate `latency`."""

    p50_ms: float | None = Field(default=None, gt=0)
    """Milliseconds that half of the requests may take; unset = any."""
    p95_ms: float | None = Field(default=None, gt=0)
    """Milliseconds that 95 % of the requests may take; unset = any."""
    p99_ms: float | None = Field(default=None, gt=0)
    """Milliseconds that 99 % of the requests may take; unset = any."""
    requests: int = Field(default=200, ge=20, le=100_000)
    """Requests of one measurement, one after the other, each with the input example."""
    attempts: int = Field(default=3, ge=1, le=10)
    """Measurements, the first of which within the budget counts: a busy machine slows requests, never speeds
    them up."""

    @model_validator(mode="after")
    def _has_budget(self) -> Self:
        if not self.budget:
            raise ValueError("give at least one of p50_ms, p95_ms and p99_ms")
        return self

    @property
    def budget(self) -> dict[str, float]:
        """Milliseconds by quantile."""
        given = {"p50": self.p50_ms, "p95": self.p95_ms, "p99": self.p99_ms}
        return {name: value for name, value in given.items() if value is not None}


class LatencyGate(Gate):
    """Times requests over HTTP to the server in a process of its own."""

    name: ClassVar[str] = "latency"
    settings_type: ClassVar[type[GateSettings]] = LatencySettings
    settings: LatencySettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return context.served

    def check(self, context: GateContext) -> Verdict:
        example = context.bundle.document(EXAMPLE)
        if not example:
            return skipped("the model has no input example that could be timed")
        server, body = context.server(context.bundle), msgspec.json.encode(example["request"])
        budget = self.settings.budget
        measured: list[dict[str, float]] = []
        for _ in range(self.settings.attempts):
            measured.append(_quantiles(server, body, self.settings.requests))
            if all(measured[-1][name] <= limit for name, limit in budget.items()):
                break
        best = min(measured, key=lambda each: max(each[name] / limit for name, limit in budget.items()))
        evidence: dict[str, Any] = {
            "budget_ms": budget,
            "measured_ms": measured,
            "requests": self.settings.requests,
        }
        over = {name: limit for name, limit in budget.items() if best[name] > limit}
        told = ", ".join(
            f"{name} {best[name]:.2f} of {limit:g} ms" for name, limit in (over or budget).items()
        )
        if over:
            return failed(f"too slow: {told}, the best of {len(measured)} measurements", **evidence)
        return passed(told, **evidence)


def _quantiles(server: GateServer, body: bytes, requests: int) -> dict[str, float]:
    """Milliseconds by quantile."""
    times = []
    for index in range(_WARM_UP + requests):
        begun = time.perf_counter()
        response = server.post(body)
        taken = time.perf_counter() - begun
        if response.status_code != 200:
            raise PredictionError(
                f"The bundle's server answers with status {response.status_code}", why=response.text[:300]
            )
        if index >= _WARM_UP:
            times.append(taken * 1e3)
    return {f"p{share}": round(float(np.quantile(times, share / 100)), 3) for share in (50, 95, 99)}
