"""Compare months of flights with a model's validation rows and log the drift table with MLflow; or, for a
deployment, have its monitors judge what is due.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import mlflow
import pandas as pd
from data import FEATURES, load_flights
from mlflow.exceptions import MlflowException
from train import month_list, without_hints

from mlflow_deploy.cli.monitor import monitor as run_monitors
from mlflow_deploy.errors import DeployError
from mlflow_deploy.monitoring import DriftReport, build_profile, detect_drift

TABLE = "drift/table.json"
REPORT = "drift/report.json"


def validation_rows(model_uri: str) -> pd.DataFrame:
    """Features of the rows that the model was validated on, read through the dataset input of its run.

    Raises:
        LookupError: no run is known for the model, or its run has no validation dataset.
    """
    run_id = mlflow.models.get_model_info(model_uri).run_id
    if not run_id:
        raise LookupError(f"{model_uri} was logged outside of a run, so its validation rows are not known")
    for used in mlflow.get_run(run_id).inputs.dataset_inputs:
        if any(tag.key == "mlflow.data.context" and tag.value == "validation" for tag in used.tags):
            uri = json.loads(used.dataset.source)["uri"]
            return pd.read_parquet(mlflow.artifacts.download_artifacts(uri))[list(FEATURES)]
    raise LookupError(f"Run {run_id} of {model_uri} has no dataset input with the context 'validation'")


def monitor(model_uri: str, months: Sequence[int], *, false_alarm_rate: float = 0.01) -> DriftReport:
    """Log how the flights of some months, and the model's answers on them, differ from the validation rows.

    The run gets the table and the whole report as artifacts, the share of drifted columns as `drift_share`,
    and each column's distance as `drift_distance/COLUMN`.
    """
    reference = validation_rows(model_uri)
    window = load_flights(months)[list(FEATURES)]
    model = mlflow.pyfunc.load_model(model_uri)
    profile = build_profile(reference, predictions=model.predict(reference))
    report = detect_drift(
        profile, window, predictions=model.predict(window), false_alarm_rate=false_alarm_rate
    )
    distances = {
        f"drift_distance/{column.name}": column.statistic
        for column in report.columns.values()
        if column.statistic is not None
    }
    drifted = [column.name for column in report.columns.values() if column.drifted]
    with mlflow.start_run(nested=mlflow.active_run() is not None):
        mlflow.set_tags({"model_uri": model_uri, "drift": "alert" if report.drifted else "ok"})
        mlflow.log_metrics(
            {"drift_share": len(drifted) / len(report.columns), "rows": report.rows, **distances}
        )
        with without_hints():
            mlflow.log_table(report.to_frame(), TABLE)
        mlflow.log_text(json.dumps(report.to_dict(), indent=1), REPORT)
    return report


def main() -> None:
    """Command line of the monitoring step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployment", default="", help="judge what this deployment captured instead")
    parser.add_argument("--model-uri", default="models:/flight-delay/latest")
    parser.add_argument("--months", type=month_list, default="7", help="such as 6,7")
    parser.add_argument("--false-alarm-rate", type=float, default=0.01)
    args = parser.parse_args()
    try:
        if args.deployment:
            run_monitors.main(["run", args.deployment], prog_name="mlflow-deploy monitor")
        report = monitor(args.model_uri, args.months, false_alarm_rate=args.false_alarm_rate)
    except (MlflowException, DeployError, LookupError) as error:
        sys.exit(f"Error: {error}")
    show(report)


def show(report: DriftReport) -> None:
    """Print the drift table."""
    table = report.to_frame()[["column", "state", "statistic", "p_value", "reason"]]
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(report.reason)


if __name__ == "__main__":
    main()
