"""Monitoring: reference profiles, drift, labels, and measured and estimated quality."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy.monitoring.drift import detect_drift
    from mlflow_deploy.monitoring.estimate import (
        EstimateCheck,
        PerformanceEstimate,
        check_estimate,
        estimate_performance,
    )
    from mlflow_deploy.monitoring.labels import LabelledRows, LabelReport, join_labels
    from mlflow_deploy.monitoring.measured import Comparison, PerformanceReport, performance
    from mlflow_deploy.monitoring.metrics import Metric
    from mlflow_deploy.monitoring.profile import ColumnProfile, Moments, ReferenceProfile, build_profile
    from mlflow_deploy.monitoring.report import Check, ColumnDrift, DriftReport, MultivariateDrift
    from mlflow_deploy.monitoring.segments import (
        SegmentReport,
        build_segment_profiles,
        detect_segment_drift,
    )

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

_PLACES = {
    "drift": ("detect_drift",),
    "estimate": ("EstimateCheck", "PerformanceEstimate", "check_estimate", "estimate_performance"),
    "labels": ("LabelledRows", "LabelReport", "join_labels"),
    "measured": ("Comparison", "PerformanceReport", "performance"),
    "metrics": ("Metric",),
    "profile": ("ColumnProfile", "Moments", "ReferenceProfile", "build_profile"),
    "report": ("Check", "ColumnDrift", "DriftReport", "MultivariateDrift"),
    "segments": ("SegmentReport", "build_segment_profiles", "detect_segment_drift"),
}


def __getattr__(name: str) -> Any:
    """Load a name when it is used: a job that waits for its next window shall hold no pyarrow in memory."""
    for module, names in _PLACES.items():
        if name in names:
            loaded = importlib.import_module(f"{__name__}.{module}")
            return getattr(loaded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
