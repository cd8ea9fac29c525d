"""scikit-learn models as skops: their own types are trusted, others are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlflow_deploy.errors import ConversionError
from mlflow_deploy.flavors import sklearn as flavor


class Halved(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer of the user."""

    def fit(self, features: Any, labels: Any = None) -> Halved:
        """Nothing to learn."""
        return self

    def transform(self, features: Any) -> Any:
        """Half of the numbers."""
        return features / 2


@pytest.fixture(scope="module")
def wine() -> tuple[Any, Any]:
    features, labels = load_wine(return_X_y=True, as_frame=True)
    return features, labels


def test_forest_behind_a_column_transformer(wine: tuple[Any, Any], tmp_path: Path) -> None:
    """MLflow alone refuses this one."""
    features, labels = wine
    scaled = ColumnTransformer([("scaled", StandardScaler(), list(features))])
    model = make_pipeline(scaled, RandomForestClassifier(5, random_state=0)).fit(features, labels)
    flavor.save_model(
        model, tmp_path / "m", input_example=features.head(2), pip_requirements=["scikit-learn"]
    )
    assert [path.name for path in tmp_path.rglob("model.*")] == ["model.skops"]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    np.testing.assert_array_equal(loaded.predict(features), model.predict(features))
    assert isinstance(flavor.load_model(tmp_path / "m"), type(model))


def test_types_of_others_are_asked_for(wine: tuple[Any, Any], tmp_path: Path) -> None:
    features, labels = wine
    model = make_pipeline(Halved(), RandomForestClassifier(3)).fit(features, labels)
    name = f"{Halved.__module__}.Halved"
    with pytest.raises(ConversionError, match=name):
        flavor.save_model(model, tmp_path / "m")
    flavor.save_model(model, tmp_path / "m", trusted_types=[name], pip_requirements=["scikit-learn"])
    np.testing.assert_array_equal(
        flavor.load_model(tmp_path / "m").predict(features), model.predict(features)
    )


def test_lambda_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="can be imported"):
        flavor.save_model(FunctionTransformer(lambda x: x), tmp_path / "m")
