"""Gate `security`: nothing in the model's files would do harm when it is loaded or installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext

_SHOWN = 20


class SecuritySettings(GateSettings):
    """What the policy may say of gate `security`."""

    accept: tuple[str, ...] = ()
    """Rules of the audit whose findings do not count."""


class SecurityGate(Gate):
    """Audits the files. Nothing of the model is imported, called or unpacked."""

    name: ClassVar[str] = "security"
    loads_model: ClassVar[bool] = False
    settings_type: ClassVar[type[GateSettings]] = SecuritySettings
    settings: SecuritySettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return {}

    def check(self, context: GateContext) -> Verdict:
        from mlflow_deploy.security import audit_path

        report = audit_path(context.folder, accept=self.settings.accept)
        evidence = {
            "files": report.files,
            "pickles": report.pickles,
            "flavors": list(report.flavors),
            "findings": [asdict(each) for each in report.findings[:_SHOWN]],
        }
        looked = f"{report.files} files, {report.pickles} pickles"
        if report.ok:
            return passed(f"nothing to refuse in {looked}", **evidence)
        counted = [each for each in report.findings if not each.accepted]
        first = counted[0]
        more = f", and {len(counted) - 1} more findings" if len(counted) > 1 else ""
        return failed(f"{first.path}: {first.rule}: {first.what} ({first.why}){more}", **evidence)
