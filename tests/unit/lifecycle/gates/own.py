"""A gate as a user would write one."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed
from mlflow_deploy.lifecycle.gates.context import GateContext


class NoFridaySettings(GateSettings):
    """What the policy may say of it."""

    day: int = Field(ge=1, le=7)
    """Day of the week."""


class NoFriday(Gate):
    """Refuses on one day of the week."""

    name: ClassVar[str] = "no-friday"
    loads_model: ClassVar[bool] = False
    settings_type: ClassVar[type[GateSettings]] = NoFridaySettings
    settings: NoFridaySettings

    def check(self, context: GateContext) -> Verdict:
        if self.settings.day == 5:
            return failed(f"{context.model.name} is not deployed on Fridays")
        return passed("it is not Friday")


class Broken(Gate):
    """Has a mistake in it."""

    name: ClassVar[str] = "broken"
    settings_type: ClassVar[type[GateSettings]] = GateSettings

    def check(self, context: GateContext) -> Verdict:
        raise ZeroDivisionError("by zero")
