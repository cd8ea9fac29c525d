"""Gate `size`: the model fits the place that is planned for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext

_MB = 1e6


class SizeSettings(GateSettings):
    """What the policy may say of gate `size`."""

    max_mb: float = Field(gt=0)
    """Megabytes (1,000,000 bytes) that the files may have."""


class SizeGate(Gate):
    """Adds up the sizes of the model's files."""

    name: ClassVar[str] = "size"
    loads_model: ClassVar[bool] = False
    settings_type: ClassVar[type[GateSettings]] = SizeSettings
    settings: SizeSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return {}

    def check(self, context: GateContext) -> Verdict:
        files = {
            path.relative_to(context.folder).as_posix(): path.stat().st_size
            for path in context.folder.rglob("*")
            if path.is_file()
        }
        size = sum(files.values()) / _MB
        largest = sorted(files.items(), key=lambda item: -item[1])[:5]
        evidence = {"mb": round(size, 3), "max_mb": self.settings.max_mb, "largest": dict(largest)}
        limit = self.settings.max_mb
        if size <= limit:
            return passed(f"{size:.2f} MB of {limit:g} MB", **evidence)
        name, bytes_ = largest[0]
        return failed(f"{size:.2f} MB, {limit:g} MB are allowed; the largest is {name} with "
                      f"{bytes_ / _MB:.2f} MB", **evidence)  # fmt: skip
