"""The whole path in one command: train, register, deploy, answer real flights, and watch for drift."""

from __future__ import annotations

import argparse
import sys
import time

import mlflow
import mlflow.deployments
from data import FEATURES, LABEL, load_flights
from deploy import ask, deploy
from mlflow.exceptions import MlflowException
from monitor import monitor, show
from train import MODEL_NAME, month_list, train

_ROWS_PER_REQUEST = 50


def send_flights(name: str, month: int, rows: int) -> dict[str, float]:
    """Send the first flights of a month to a deployment and compare the answers with what happened.

    Returns:
        `sent_rows`, `sent_accuracy`, and `request_seconds`, the mean time of a request of 50 rows.
    """
    flights = load_flights([month]).head(rows)
    client = mlflow.deployments.get_deploy_client("local")
    begin = time.perf_counter()
    answers = ask(client, name, flights[list(FEATURES)], _ROWS_PER_REQUEST)
    seconds = time.perf_counter() - begin
    requests = -(-len(flights) // _ROWS_PER_REQUEST)
    return {
        "sent_rows": len(flights),
        "sent_accuracy": float((flights[LABEL].to_numpy() == answers).mean()),
        "request_seconds": seconds / requests,
    }


def main() -> None:
    """Command line of the whole path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="flight-delay", help="name of the deployment")
    parser.add_argument("--registered-model-name", default=MODEL_NAME)
    parser.add_argument("--months", type=month_list, default="1,2", help="months to train on")
    parser.add_argument("--max-iter", type=int, default=60)
    parser.add_argument("--traffic-month", type=int, default=3, help="month whose flights are sent")
    parser.add_argument("--traffic-rows", type=int, default=500)
    parser.add_argument("--drift-months", type=month_list, default="7", help="months to watch for drift")
    parser.add_argument("--keep", choices=("true", "false"), default="false", help="leave the deployment up")
    args = parser.parse_args()
    try:
        run_all(args)
    except MlflowException as error:
        sys.exit(f"Error: {error.message}")


def run_all(args: argparse.Namespace) -> None:
    """All steps in one MLflow run, with a nested run for training and one for the drift table."""
    with mlflow.start_run():
        trained = train(args.months, max_iter=args.max_iter, registered_model_name=args.registered_model_name)
        model_uri = f"models:/{args.registered_model_name}/{trained.model_version}"
        print(f"Trained and registered {model_uri}: validation ROC AUC {trained.metrics['roc_auc']:.3f}")
        deployment = deploy(args.name, model_uri)
        try:
            mlflow.set_tags({"deployment": args.name, "model_uri": model_uri})
            print(f"Deployed {args.name} at {deployment['url']} as {deployment['format']}")
            sent = send_flights(args.name, args.traffic_month, args.traffic_rows)
            mlflow.log_metrics(sent)
            print(f"Answered {sent['sent_rows']} flights, {sent['sent_accuracy']:.1%} of them right")
            report = monitor(model_uri, args.drift_months)
            mlflow.set_tag("drift", "alert" if report.drifted else "ok")
            show(report)
        finally:
            if args.keep == "false":
                mlflow.deployments.get_deploy_client("local").delete_deployment(args.name)
                print(f"Deleted {args.name}; keep it with -P keep=true")


if __name__ == "__main__":
    main()
