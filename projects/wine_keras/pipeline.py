"""Train the wine network and make everything of it: SavedModel, ONNX, TFLite in int8, a pruned one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import mlflow
from data import load
from train import Trained, train

from mlflow_deploy.conversion.training import TrainingData
from mlflow_deploy.flavors.add import add_flavor
from mlflow_deploy.lifecycle.optimise import Optimised, prune_logged, quantize_logged


@dataclass(frozen=True)
class Made:
    """What was made of the trained network: URIs of forms by name, the int8 TFLite one, and the pruned one."""

    trained: Trained
    forms: dict[str, str]
    int8: Optimised
    pruned: Optimised


def run(epochs: int = 60, registered_model_name: str | None = "wine") -> Made:
    """Everything in one MLflow run; each model names the trained one as its parent."""
    wines = load()
    with mlflow.start_run(nested=mlflow.active_run() is not None):
        trained = train(epochs, registered_model_name)
        forms = {
            form: add_flavor(trained.model_uri, form, name=form).uri
            for form in ("savedmodel", "onnx", "tflite")
        }
        int8 = quantize_logged(trained.model_uri, precision="int8", form="tflite")
        again = TrainingData(wines.train, wines.train_labels, epochs=max(1, epochs // 4), batch_size=16)
        pruned, _ = prune_logged(
            trained.model_uri,
            rows=wines.validation,
            truth=wines.validation_labels,
            ratio=0.5,
            training=again,
        )
    return Made(trained, forms, int8, pruned)


def main() -> None:
    """Command line of the whole project."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--registered-model-name", default="wine", help="an empty name logs only")
    args = parser.parse_args()
    made = run(args.epochs, args.registered_model_name or None)
    print(f"model_uri={made.trained.model_uri} accuracy={made.trained.accuracy:.4f}")
    for form, uri in made.forms.items():
        print(f"{form}: {uri}")
    for optimised in (made.int8, made.pruned):
        print(f"\n{optimised.model_uri}\n{optimised.comparison.to_markdown()}")


if __name__ == "__main__":
    main()
