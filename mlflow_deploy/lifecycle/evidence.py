"""Evidence of a conversion in MLflow: the parity report as an artifact of the run that made the model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mlflow_deploy.bundle import PARITY, Bundle, ModelSource
from mlflow_deploy.conversion.report import ParityReport

FOLDER = "parity"
"""Artifact folder of the reports, one folder per form inside."""


def write_report(report: ParityReport, folder: Path, *, model: str = "") -> None:
    """Write `parity.json` and `parity.html` into an existing folder."""
    from mlflow_deploy.conversion.report_page import page

    (folder / "parity.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "parity.html").write_text(page(report, model=model), encoding="utf-8")


def log_bundle(bundle: Bundle) -> str:
    """Log the parity report in a bundle; does nothing for a bundle without one, such as pyfunc.

    Returns:
        The empty string, or why it could not be logged.
    """
    document = bundle.document(PARITY)
    if document is None:
        return ""
    return log_report(ParityReport.from_dict(document), bundle.manifest.model)


def log_report(report: ParityReport, source: ModelSource) -> str:
    """Log a parity report to the run that made the model.

    Returns:
        The empty string, or why it could not be logged, which must not keep a model from being served.
    """
    if not source.run_id:
        return "the parity report was not logged to MLflow: the model belongs to no run"
    import mlflow

    name = f"{source.name} {source.version}".strip() or source.uri
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        write_report(report, Path(work), model=name)
        try:
            mlflow.MlflowClient().log_artifacts(source.run_id, work, f"{FOLDER}/{report.format}")
        except Exception as error:  # noqa: BLE001 - artifact stores raise what their clients raise; the text is reported
            why = " ".join(str(error).split()) or type(error).__name__
            return f"the parity report was not logged to MLflow: {why[:300]}"
    return ""
