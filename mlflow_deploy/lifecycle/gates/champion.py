"""Gate `champion`: the version is not worse than the one that it would replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed
from mlflow_deploy.lifecycle.gates.paired import METRICS, compare

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext


class ChampionSettings(GateSettings):
    """What the policy may say of gate `champion`."""

    metric: str = "accuracy"
    """What is compared."""
    max_loss: float = Field(default=0.01, ge=0)
    """How much worse the version may be, in units of the metric; the whole confidence interval must keep it."""
    dataset: str = "validation"
    """Rows of the policy that both are asked for."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the interval, both ends together."""
    min_rows: int = Field(default=100, ge=2)
    """Rows that both must have answered."""

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"it is one of {', '.join(METRICS)}")
        return value


class ChampionGate(Gate):
    """Asks the servers of both bundles for the same rows and compares what they answer."""

    name: ClassVar[str] = "champion"
    settings_type: ClassVar[type[GateSettings]] = ChampionSettings
    settings: ChampionSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        uri, ours = context.champion_uri, context.judged(self.settings.dataset)
        if ours is None or not uri:
            return None
        return {**ours, "champion": uri, "champion_bundle": context.bundle_of(uri).digest}

    def check(self, context: GateContext) -> Verdict:
        settings, uri = self.settings, context.champion_uri
        if not uri:
            return passed("there is no champion yet that it could be worse than")
        if uri == context.model.uri:
            return passed("it is the champion itself", champion=uri)
        ours = context.answers(context.bundle, settings.dataset)
        theirs = context.answers(context.bundle_of(uri), settings.dataset)
        found = compare(ours, theirs, settings.metric, settings.confidence)
        evidence: dict[str, Any] = {
            "champion": uri,
            "dataset": settings.dataset,
            "rows_of": context.rows(settings.dataset).source,
            "max_loss": settings.max_loss,
            "confidence": settings.confidence,
            **asdict(found),
        }
        told = (
            f"{settings.metric} {found.candidate:.4f}, champion {uri} {found.champion:.4f}: gain "
            f"{found.gain:+.4f} ({found.low:+.4f} to {found.high:+.4f}, {settings.confidence:.0%}) on "
            f"{found.rows} rows of {settings.dataset}"
        )
        if found.rows < settings.min_rows:
            return failed(f"only {found.rows} of {settings.min_rows} rows: {told}", **evidence)
        if found.low >= -settings.max_loss:
            return passed(told, **evidence)
        if found.gain < -settings.max_loss:
            return failed(f"worse by more than {settings.max_loss:g}: {told}", **evidence)
        return failed(
            f"too few rows to show that it is not worse by more than {settings.max_loss:g}: {told}",
            **evidence,
        )
