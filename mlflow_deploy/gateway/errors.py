"""What the gateway can fail with."""

from __future__ import annotations

from pathlib import Path

from mlflow_deploy.errors import TargetError


class GatewayRejected(TargetError):
    """Envoy refuses a configuration; it goes on with the one it has."""

    code = "GATEWAY_REJECTED"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"The gateway refuses the new {what}",
            why=why,
            hint="The earlier configuration still holds and no request was lost",
        )


class GatewayUnavailable(TargetError):
    """Envoy does not run, or does not take a configuration in time."""

    code = "GATEWAY_UNAVAILABLE"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(
            f"The gateway in {folder} does not answer",
            why=why,
            hint="Look at its log; `mlflow-deploy up` starts it again with the same traffic",
        )
