"""PMML from a model to a server; `test_forms.py` runs these tests in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LinearRegression

from mlflow_deploy import errors
from mlflow_deploy.conversion import make_servable
from mlflow_deploy.flavors import sealed
from mlflow_deploy.flavors.table import flavor_module
from mlflow_deploy.security.keys import new_secret
from mlflow_deploy.serving.inprocess import open_in_process
from mlflow_deploy.testing.flavors import FlavorCase, FlavorContract
from tests.integration.conversion.cases import HIST, mixed
from tests.integration.conversion.conftest import SaveModel
from tests.integration.conversion.rows import flights, iris


@pytest.fixture(scope="module")
def wine() -> tuple[Any, Any]:
    """A model, and rows of each class."""
    features, labels = load_wine(return_X_y=True, as_frame=True)
    model = LinearRegression().fit(features, labels)
    return model, features.iloc[[0, 1, 2, 70, 71, 72, 170, 171, 172]].reset_index(drop=True)


class TestPmml(FlavorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, wine: tuple[Any, Any]) -> FlavorCase:
        model, rows = wine
        return FlavorCase(flavor_module("pmml"), model, rows, model.predict(rows))

    def test_sealed_it_opens_from_memory(self, case: FlavorCase, saved: Path, tmp_path: Path) -> None:
        key = f"file:{tmp_path}/key"
        new_secret(tmp_path / "key")
        sealed.save_model(saved, tmp_path / "model", keys=key)
        assert [path.name for path in (tmp_path / "model/forms/sealed/servable").iterdir()] == [
            "model.sealed"
        ]
        loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"), model_config={"seal_key": key})
        np.testing.assert_allclose(loaded.predict(case.example), case.expected, atol=1e-9)
        assert sealed.load_model(tmp_path / "model", key=key) is not None


def test_pmml_gives_the_native_answer_through_the_server(
    save: SaveModel, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs, answers = flights()
    model = mixed(HIST(max_iter=5)).fit(inputs, answers)
    folder = save(model, inputs, "predict_proba")

    made = make_servable(folder, work, format="pmml")

    assert (made.servable.kind, made.parity and made.parity.passed) == ("pmml", True)
    assert capfd.readouterr().out == ""
    rows = inputs[:50].astype(object).where(inputs[:50].notna(), None)
    body = {"dataframe_split": {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}}
    answer = open_in_process(made.servable, made.content, made.signature)(json.dumps(body).encode())
    np.testing.assert_allclose(json.loads(answer)["predictions"], model.predict_proba(inputs[:50]), atol=1e-9)


def test_a_random_forest_in_pmml_is_caught(save: SaveModel, work: Path) -> None:
    inputs, answers = iris()
    folder = save(RandomForestClassifier(5, random_state=0).fit(inputs, answers), inputs)

    with pytest.raises(errors.ParityFailed, match="missing values"):
        make_servable(folder, work, format="pmml")


def test_what_has_no_pmml_is_named_as_java_names_it(save: SaveModel, work: Path) -> None:
    inputs, answers = iris()
    folder = save(GaussianProcessClassifier().fit(inputs[::5], answers[::5]), inputs)

    with pytest.raises(errors.UnsupportedConversion, match=r"java\.lang\.\w+Exception: .*sklearn\.Estimator"):
        make_servable(folder, work, format="pmml")
