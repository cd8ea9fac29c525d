"""Monitoring: reference profiles, drift, labels, and measured and estimated quality."""

from mlflow_deploy.monitoring.drift import detect_drift
from mlflow_deploy.monitoring.estimate import (
    EstimateCheck,
    PerformanceEstimate,
    check_estimate,
    estimate_performance,
)
from mlflow_deploy.monitoring.labels import LabelledRows, LabelReport, join_labels
from mlflow_deploy.monitoring.metrics import Metric
from mlflow_deploy.monitoring.performance import Comparison, PerformanceReport, performance
from mlflow_deploy.monitoring.profile import ColumnProfile, Moments, ReferenceProfile, build_profile
from mlflow_deploy.monitoring.report import Check, ColumnDrift, DriftReport, MultivariateDrift
from mlflow_deploy.monitoring.segments import SegmentReport, build_segment_profiles, detect_segment_drift

__all__ = [
    "Check",
    "ColumnDrift",
    "ColumnProfile",
    "Comparison",
    "DriftReport",
    "EstimateCheck",
    "LabelReport",
    "LabelledRows",
    "Metric",
    "Moments",
    "MultivariateDrift",
    "PerformanceEstimate",
    "PerformanceReport",
    "ReferenceProfile",
    "SegmentReport",
    "build_profile",
    "build_segment_profiles",
    "check_estimate",
    "detect_drift",
    "detect_segment_drift",
    "estimate_performance",
    "join_labels",
    "performance",
]
