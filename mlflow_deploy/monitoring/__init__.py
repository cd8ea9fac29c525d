"""Monitoring: reference profiles and drift detection."""

from mlflow_deploy.monitoring.drift import detect_drift
from mlflow_deploy.monitoring.profile import ColumnProfile, Moments, ReferenceProfile, build_profile
from mlflow_deploy.monitoring.report import Check, ColumnDrift, DriftReport

__all__ = [
    "Check",
    "ColumnDrift",
    "ColumnProfile",
    "DriftReport",
    "Moments",
    "ReferenceProfile",
    "build_profile",
    "detect_drift",
]
