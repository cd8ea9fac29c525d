"""Gate `parity`: what would be deployed answers like the native model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mlflow_deploy.bundle import PARITY
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed, skipped

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext


class ParitySettings(GateSettings):
    """What the policy may say of gate `parity`."""

    allow_fallback: bool = True
    """Whether a version may be served as pyfunc because no faster form answers like it."""


class ParityGate(Gate):
    """Takes the comparison that the conversion has made."""

    name: ClassVar[str] = "parity"
    settings_type: ClassVar[type[GateSettings]] = ParitySettings
    settings: ParitySettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return {"bundle": context.bundle.digest}

    def check(self, context: GateContext) -> Verdict:
        from mlflow_deploy.conversion.report import ParityReport

        manifest = context.bundle.manifest
        evidence: dict[str, Any] = {"format": manifest.format, "rejected": dict(manifest.rejected)}
        if manifest.fallback and not self.settings.allow_fallback:
            return failed(f"it would be served as pyfunc: {manifest.fallback}", **evidence)
        document = context.bundle.document(PARITY)
        if document is None:
            if manifest.format == "pyfunc":
                return passed("pyfunc is the native model itself", fallback=manifest.fallback, **evidence)
            return skipped(f"the bundle of form {manifest.format} has no comparison", **evidence)
        report = ParityReport.from_dict(document)
        evidence["report"] = document
        return passed(report.summary, **evidence) if report.passed else failed(report.summary, **evidence)
