"""Gate `metric`: the version is good enough on rows with known answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed
from mlflow_deploy.lifecycle.registry import registry_errors

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext


class MetricSettings(GateSettings):
    """What the policy may say of gate `metric`."""

    min: dict[str, float] = Field(default={})
    """Metrics with the least value that they may have, such as accuracy: 0.8."""
    max: dict[str, float] = Field(default={})
    """Metrics with the greatest value that they may have, such as log_loss: 0.5."""
    source: Literal["measured", "run"] = "measured"
    """`measured` asks the bundle's server; `run` takes what the run that made the version has logged."""
    dataset: str = "validation"
    """Rows of the policy to measure on."""
    judge: Literal["interval", "value"] = "interval"
    """What must keep the limit: the worse end of the confidence interval, or the value itself. What a run has
    logged has no interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the interval, both ends together."""

    @model_validator(mode="after")
    def _has_limit(self) -> Self:
        if not self.min and not self.max:
            raise ValueError("give at least one metric in min or max")
        return self


class MetricGate(Gate):
    """Compares metrics with fixed limits."""

    name: ClassVar[str] = "metric"
    settings_type: ClassVar[type[GateSettings]] = MetricSettings
    settings: MetricSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        # What a run has logged can be logged anew.
        return context.judged(self.settings.dataset) if self.settings.source == "measured" else None

    def check(self, context: GateContext) -> Verdict:
        settings = self.settings
        measured = self._measured(context) if settings.source == "measured" else self._logged(context)
        limits = [(name, "min", limit) for name, limit in settings.min.items()]
        limits += [(name, "max", limit) for name, limit in settings.max.items()]
        missing = [name for name, _, _ in limits if measured.get(name, {}).get("value") is None]
        evidence: dict[str, Any] = {
            "source": settings.source,
            "dataset": settings.dataset,
            "metrics": measured,
        }
        if missing:
            why = measured.get(missing[0], {}).get("reason") or f"known are {', '.join(sorted(measured))}"
            return failed(f"{missing[0]} is not known: {why}", **evidence)
        told, broken = [], []
        for name, kind, limit in limits:
            found = measured[name]
            end = found.get("low" if kind == "min" else "high") if settings.judge == "interval" else None
            judged = found["value"] if end is None else end
            between = "" if end is None else f" ({found['low']:.4g} to {found['high']:.4g})"
            line = f"{name} {found['value']:.4g}{between}, {kind} {limit:g}"
            told.append(line)
            if judged < limit if kind == "min" else judged > limit:
                broken.append(line)
        return failed("; ".join(broken), **evidence) if broken else passed("; ".join(told), **evidence)

    def _measured(self, context: GateContext) -> dict[str, dict[str, Any]]:
        from mlflow_deploy.monitoring.metrics import measure

        answers = context.answers(context.bundle, self.settings.dataset)
        return {name: asdict(found) for name, found in measure(answers, self.settings.confidence).items()}

    def _logged(self, context: GateContext) -> dict[str, dict[str, Any]]:
        import mlflow

        run_id = context.model.run_id or context.source.run_id
        if not run_id:
            raise DataError("The version has no logged metrics", why="it belongs to no run")
        with registry_errors(context.model.uri):
            logged = mlflow.MlflowClient().get_run(run_id).data.metrics
        return {name: {"name": name, "value": value, "run": run_id} for name, value in logged.items()}
