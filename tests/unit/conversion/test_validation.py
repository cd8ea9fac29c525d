"""Validation rows found at a run, or the reason why they could not be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import mlflow.data
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.dummy import DummyClassifier

from mlflow_deploy.conversion.validation import from_path, from_run
from mlflow_deploy.errors import DataError

ROWS = pd.DataFrame({"x": [1.0, 2.0, 3.0], "late": [0, 1, 0]})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tracking store of its own, made once because its tables take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("validation", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("validation")
    yield folder
    mlflow.set_tracking_uri(before)


def log_dataset(source: str, context: str = "validation") -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*integer column.*")
        warnings.filterwarnings("ignore", message=".*interpreted in multiple ways.*")
        # The store keeps one source per name and content.
        mlflow.log_input(mlflow.data.from_pandas(ROWS, source=source, name=source[-40:]), context=context)


def log_rows(path: Path, artifact: str = "validation") -> None:
    ROWS.to_parquet(path)
    mlflow.log_artifact(str(path), artifact)


def log_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DummyClassifier().fit(ROWS[["x"]], ROWS["late"])
        signature = infer_signature(ROWS[["x"]])
        mlflow.sklearn.log_model(model, name="m", signature=signature, pip_requirements=["scikit-learn"])


def test_the_dataset_of_context_validation_is_read_and_the_label_found(store: Path, tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        log_rows(tmp_path / "part.parquet", "data")
        log_dataset("https://example.org/train.csv", "training")
        log_dataset(mlflow.get_artifact_uri("data/part.parquet"))
        log_model()

    found = from_run(run.info.run_id)

    assert found is not None
    assert (found.label, found.problem) == ("late", "")
    pd.testing.assert_frame_equal(found.frame, ROWS)
    assert found.source.endswith("data/part.parquet")


def test_a_csv_file_is_read(store: Path, tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    with mlflow.start_run() as run:
        log_dataset(str(tmp_path / "rows.csv"))

    found = from_run(run.info.run_id)

    assert found is not None
    assert (found.label, found.problem) == (None, "")
    pd.testing.assert_frame_equal(found.frame, ROWS)


def test_the_artifact_is_read_when_no_dataset_is_logged(store: Path, tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        log_rows(tmp_path / "rows.parquet")

    found = from_run(run.info.run_id)

    assert found is not None
    assert len(found.frame) == 3


def test_a_run_without_validation_rows_gives_none(store: Path) -> None:
    with mlflow.start_run() as run:
        log_dataset("https://example.org/train.csv", "training")

    assert from_run(run.info.run_id) is None


def test_rows_that_cannot_be_read_say_why(store: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with mlflow.start_run() as run:
        log_dataset(str(tmp_path / "rows.parquet"))

    found = from_run(run.info.run_id)

    assert found is not None
    assert found.frame.empty
    assert "cannot be read" in found.problem


def test_a_dataset_made_by_code_says_that_it_has_no_file(store: Path) -> None:
    with mlflow.start_run() as run, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.log_input(mlflow.data.from_pandas(ROWS), context="validation")

    found = from_run(run.info.run_id)

    assert found is not None
    assert "cannot be read" in found.problem


def test_a_file_is_read_by_path(tmp_path: Path) -> None:
    ROWS.to_parquet(tmp_path / "rows.parquet")
    assert from_path(tmp_path / "rows.parquet", label="late").label == "late"
    assert len(from_path((tmp_path / "rows.parquet").as_uri()).frame) == 3
    with pytest.raises(DataError, match="there is no file"):
        from_path(tmp_path / "none.parquet")
