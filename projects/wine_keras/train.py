"""Train the wine network and log it with its validation rows."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import mlflow
import numpy as np
from data import Wines, load
from mlflow.models import infer_signature

from mlflow_deploy.conversion.training import TrainingData, keras_task_loss, train_keras

REQUIREMENTS = ["keras", "mlflow", "numpy", "tensorflow-cpu"]


@dataclass(frozen=True)
class Trained:
    """A logged network: its run, URI, registered version and accuracy on the validation rows."""

    run_id: str
    model_uri: str
    version: str
    accuracy: float


def make_model(wines: Wines, hidden: int = 64) -> keras.Model:
    """A dense network that normalises its inputs itself, so that raw measurements are its requests.

    Args:
        wines: whose means and variances the normalisation takes.
        hidden: neurons of the first layer; the second one has half as many.
    """
    normalise = keras.layers.Normalization()
    normalise.adapt(wines.train)
    return keras.Sequential(
        [
            keras.layers.Input((wines.train.shape[1],)),
            normalise,
            keras.layers.Dense(hidden, activation="relu"),
            keras.layers.Dense(hidden // 2, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


def train(epochs: int = 60, registered_model_name: str | None = "wine") -> Trained:
    """Train, validate and log in one MLflow run."""
    keras.utils.set_random_seed(0)
    wines = load()
    model = make_model(wines)
    data = TrainingData(wines.train, wines.train_labels, epochs=epochs, batch_size=16)
    with mlflow.start_run(nested=mlflow.active_run() is not None) as run:
        losses = train_keras(model, data, keras_task_loss(model, data), data.labels)
        answers = np.asarray(model(wines.validation, training=False))
        accuracy = float((answers.argmax(axis=1) == wines.validation_labels).mean())
        mlflow.log_params({"epochs": epochs, "learning_rate": data.learning_rate})
        mlflow.log_metrics({"accuracy": accuracy, "loss": losses[-1]})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            wines.table().to_parquet(path, index=False)
            mlflow.log_artifact(str(path), "validation")
        info = mlflow.tensorflow.log_model(
            model,
            name="model",
            signature=infer_signature(wines.validation, answers),
            input_example=wines.validation[:16],
            pip_requirements=REQUIREMENTS,
            registered_model_name=registered_model_name,
        )
    version = info.registered_model_version
    return Trained(run.info.run_id, info.model_uri, "" if version is None else str(version), accuracy)


def main() -> None:
    """Command line of the training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--registered-model-name", default="wine", help="an empty name logs only")
    args = parser.parse_args()
    done = train(args.epochs, args.registered_model_name or None)
    print(f"model_uri={done.model_uri} version={done.version} accuracy={done.accuracy:.4f}")


if __name__ == "__main__":
    main()
