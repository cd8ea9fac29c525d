"""Train the digits network and make more of it: ONNX in int8, TorchScript, a pruned and a distilled one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import mlflow
import torch
from data import load
from net import Net
from train import Trained, train

from mlflow_deploy.conversion.training import TrainingData
from mlflow_deploy.flavors.add import add_flavor
from mlflow_deploy.lifecycle.optimise import Optimised, distill_logged, prune_logged, quantize_logged


@dataclass(frozen=True)
class Made:
    """What was made of the trained network."""

    trained: Trained
    int8: Optimised
    torchscript_uri: str
    pruned: Optimised
    student: Optimised


def run(epochs: int = 12, registered_model_name: str | None = "digits") -> Made:
    """Everything in one MLflow run; each smaller model names the trained one as its parent."""
    digits = load()
    rows, truth = digits.validation, digits.validation_labels
    with mlflow.start_run(nested=mlflow.active_run() is not None):
        trained = train(epochs, registered_model_name)
        int8 = quantize_logged(trained.model_uri, precision="int8")
        script = add_flavor(trained.model_uri, "torchscript", name="torchscript")
        again = TrainingData(digits.train, digits.train_labels, epochs=max(1, epochs // 4))
        pruned, _ = prune_logged(trained.model_uri, rows=rows, truth=truth, ratio=0.5, training=again)
        torch.manual_seed(1)
        lessons = TrainingData(digits.train, digits.train_labels, epochs=epochs)
        student, _ = distill_logged(
            trained.model_uri, Net(channels=4, hidden=32), training=lessons, rows=rows, truth=truth
        )
    return Made(trained, int8, script.uri, pruned, student)


def main() -> None:
    """Command line of the whole project."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--registered-model-name", default="digits", help="an empty name logs only")
    args = parser.parse_args()
    made = run(args.epochs, args.registered_model_name or None)
    print(f"model_uri={made.trained.model_uri} accuracy={made.trained.accuracy:.4f}")
    for optimised in (made.int8, made.pruned, made.student):
        print(f"\n{optimised.model_uri}\n{optimised.comparison.to_markdown()}")
    print(f"torchscript: {made.torchscript_uri}")


if __name__ == "__main__":
    main()
