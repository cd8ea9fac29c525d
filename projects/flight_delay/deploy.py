"""Deploy a model version on this machine, or move an existing deployment to it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import mlflow.deployments
import pandas as pd
from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException


def deploy(name: str, model_uri: str) -> dict[str, Any]:
    """Create the deployment `name` on the target `local`, or update it, and return its description."""
    client = mlflow.deployments.get_deploy_client("local")
    if name in {deployment["name"] for deployment in client.list_deployments()}:
        return client.update_deployment(name, model_uri)
    return client.create_deployment(name, model_uri)


def ask(client: BaseDeploymentClient, name: str, rows: pd.DataFrame, rows_per_request: int) -> list[int]:
    """Send rows to a deployment in requests of a few rows; the answers, one per row."""
    answers: list[int] = []
    for start in range(0, len(rows), rows_per_request):
        response = client.predict(name, rows.iloc[start : start + rows_per_request])
        answers += response["predictions"]
    return answers


def main() -> None:
    """Command line of the deployment step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="flight-delay")
    parser.add_argument("--model-uri", default="models:/flight-delay/latest")
    args = parser.parse_args()
    try:
        deployment = deploy(args.name, args.model_uri)
    except MlflowException as error:
        sys.exit(f"Error: {error.message}")
    print(" ".join(f"{key}={value}" for key, value in deployment.items()))


if __name__ == "__main__":
    main()
