"""From an MLflow model to the fastest servable whose answers are proven equal to the native model's."""

from __future__ import annotations

from mlflow_deploy.conversion.choose import Conversion, make_servable
from mlflow_deploy.conversion.report import ParityReport, Tolerance
from mlflow_deploy.conversion.validation import Validation

__all__ = [
    "Conversion",
    "ParityReport",
    "Tolerance",
    "Validation",
    "make_servable",
]
