"""What keeps models secret and harmless: sealing (encryption) with its keys, and the audit of model files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy.security.audit import audit_path
    from mlflow_deploy.security.findings import AuditReport, Finding

__all__ = ["AuditReport", "Finding", "audit_path"]


def __getattr__(name: str) -> Any:
    """Load the audit when it is asked for: a server that opens a sealed model needs none of it."""
    if name == "audit_path":
        from mlflow_deploy.security.audit import audit_path

        return audit_path
    if name in ("AuditReport", "Finding"):
        from mlflow_deploy.security import findings

        return getattr(findings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
