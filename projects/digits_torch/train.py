"""Train the digits network and log it with its validation rows."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import torch
from data import Digits, load
from mlflow.models import infer_signature
from net import Net

from mlflow_deploy.conversion.training import TrainingData, torch_targets, torch_task_loss, train_torch

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ["mlflow", "numpy", "torch"]


@dataclass(frozen=True)
class Trained:
    """A logged network: its run, URI, registered version and accuracy on the validation rows."""

    run_id: str
    model_uri: str
    version: str
    accuracy: float


def train(epochs: int = 12, registered_model_name: str | None = "digits") -> Trained:
    """Train, validate and log in one MLflow run."""
    torch.manual_seed(0)
    digits = load()
    model = Net()
    data = TrainingData(digits.train, digits.train_labels, epochs=epochs)
    with mlflow.start_run(nested=mlflow.active_run() is not None) as run:
        losses = train_torch(model, data, torch_task_loss(data), torch_targets(data))
        accuracy = accuracy_of(model, digits)
        mlflow.log_params({"epochs": epochs, "learning_rate": data.learning_rate})
        mlflow.log_metrics({"accuracy": accuracy, "loss": losses[-1]})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            digits.table().to_parquet(path, index=False)
            mlflow.log_artifact(str(path), "validation")
        example = digits.validation[:32]
        with torch.no_grad():
            answer = model(torch.from_numpy(example)).numpy()
        info = mlflow.pytorch.log_model(
            model,
            name="model",
            signature=infer_signature(example, answer),
            input_example=example,
            code_paths=[str(HERE / "net.py")],
            pip_requirements=REQUIREMENTS,
            serialization_format="pickle",
            registered_model_name=registered_model_name,
        )
    version = info.registered_model_version
    return Trained(run.info.run_id, info.model_uri, "" if version is None else str(version), accuracy)


def accuracy_of(model: torch.nn.Module, digits: Digits) -> float:
    """Share of the validation images that are read rightly."""
    with torch.no_grad():
        chosen = model.eval()(torch.from_numpy(digits.validation)).argmax(dim=1).numpy()
    return float((chosen == digits.validation_labels).mean())


def main() -> None:
    """Command line of the training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--registered-model-name", default="digits", help="an empty name logs only")
    args = parser.parse_args()
    done = train(args.epochs, args.registered_model_name or None)
    print(f"model_uri={done.model_uri} version={done.version} accuracy={done.accuracy:.4f}")


if __name__ == "__main__":
    main()
