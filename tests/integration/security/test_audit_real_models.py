"""Real models as MLflow logs them pass the audit; one with a hostile pickle beside it does not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn import (
    calibration,
    cluster,
    compose,
    decomposition,
    ensemble,
    feature_selection,
    gaussian_process,
    linear_model,
    mixture,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from mlflow_deploy.cli import group
from mlflow_deploy.security import audit_path
from tests.unit.security.hostile import SAMPLES

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.random((60, 3))
LABELS = (FEATURES.sum(axis=1) > 1.5).astype(int)

ESTIMATORS: tuple[Any, ...] = (
    linear_model.LinearRegression(), linear_model.LogisticRegression(), linear_model.Ridge(),
    linear_model.RidgeClassifierCV(), linear_model.Lasso(), linear_model.SGDClassifier(random_state=0),
    linear_model.BayesianRidge(), linear_model.HuberRegressor(), linear_model.PoissonRegressor(),
    svm.SVC(), svm.LinearSVC(), svm.NuSVR(), neighbors.KNeighborsClassifier(),
    neighbors.KNeighborsClassifier(algorithm="kd_tree"), neighbors.KNeighborsRegressor(algorithm="ball_tree"),
    tree.DecisionTreeClassifier(), tree.ExtraTreeRegressor(), ensemble.RandomForestClassifier(3),
    ensemble.GradientBoostingClassifier(n_estimators=3), ensemble.HistGradientBoostingClassifier(max_iter=3),
    ensemble.HistGradientBoostingRegressor(max_iter=3), ensemble.AdaBoostClassifier(n_estimators=3),
    ensemble.BaggingRegressor(n_estimators=3), ensemble.IsolationForest(n_estimators=3),
    ensemble.VotingClassifier([("a", naive_bayes.GaussianNB()), ("b", tree.DecisionTreeClassifier())]),
    ensemble.StackingClassifier([("a", naive_bayes.GaussianNB())]), naive_bayes.BernoulliNB(),
    neural_network.MLPClassifier(3, solver="lbfgs", max_iter=1000),
    gaussian_process.GaussianProcessClassifier(),
    cluster.KMeans(2, random_state=0), mixture.GaussianMixture(2), LinearDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(), calibration.CalibratedClassifierCV(naive_bayes.GaussianNB()),
    model_selection.GridSearchCV(tree.DecisionTreeClassifier(), {"max_depth": [1, 2]}),
    pipeline.make_pipeline(
        compose.ColumnTransformer(
            [("s", preprocessing.StandardScaler(), [0]), ("q", preprocessing.SplineTransformer(), [1, 2])]
        ),
        preprocessing.FunctionTransformer(np.tanh), decomposition.PCA(2),
        feature_selection.SelectKBest(k=1), linear_model.LogisticRegression(),
    ),
)  # fmt: skip


@pytest.mark.parametrize("serialization", ["pickle", "cloudpickle", "skops"])
def test_scikit_learn_models_pass(tmp_path: Path, serialization: str) -> None:
    import mlflow
    import skops.io
    from mlflow.sklearn import _save_model

    assert mlflow.__version__
    assert len(ESTIMATORS) >= 30
    for number, estimator in enumerate(ESTIMATORS):
        estimator.fit(FEATURES, LABELS)
        path = tmp_path / f"{number}.{'skops' if serialization == 'skops' else 'pkl'}"
        if serialization == "skops":
            skops.io.dump(estimator, path)
        else:
            _save_model(estimator, str(path), serialization, None)
    report = audit_path(tmp_path, flavor="sklearn")
    assert {finding.what for finding in report.findings} == set()
    assert report.files >= len(ESTIMATORS)


@pytest.mark.parametrize("serialization", ["pickle", "skops"])
def test_a_logged_model_passes_until_a_pickle_is_put_beside_it(tmp_path: Path, serialization: str) -> None:
    import mlflow

    folder = tmp_path / "model"
    model = linear_model.LogisticRegression().fit(FEATURES, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            model, folder, serialization_format=serialization, input_example=FEATURES[:2]
        )
    passed = CliRunner().invoke(group, ["security", "audit", str(folder)], env={"COLUMNS": "300"})
    assert passed.exit_code == 0, passed.output
    assert "nothing to refuse" in passed.output
    name, content, what = SAMPLES["importlib"]
    (folder / f"extra-{name}").write_bytes(content)
    refused = CliRunner().invoke(group, ["security", "audit", str(folder), "--json"])
    assert refused.exit_code == 1
    assert [finding["what"] for finding in json.loads(refused.output)["findings"]] == [what]
    table = CliRunner().invoke(group, ["security", "audit", str(folder)], env={"COLUMNS": "300"})
    assert table.exit_code == 1
    assert what in table.output
    accepted = CliRunner().invoke(group, ["security", "audit", str(folder), "--accept", "pickle-global"])
    assert accepted.exit_code == 0


def test_a_registered_version_is_fetched_and_audited(tracking: str) -> None:
    import mlflow

    model = linear_model.LogisticRegression().fit(FEATURES, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run():
            mlflow.sklearn.log_model(model, name="audited", registered_model_name="audited")
    done = CliRunner().invoke(group, ["security", "audit", "models:/audited/1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["flavors"] == ["sklearn"]


def test_boosted_models_pass(tmp_path: Path) -> None:
    import joblib
    import lightgbm
    import mlflow
    import xgboost

    boosted = xgboost.XGBClassifier(n_estimators=2).fit(FEATURES, LABELS)
    light = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(FEATURES, LABELS)
    joblib.dump(boosted, tmp_path / "xgboost.joblib", compress=3)
    joblib.dump(light, tmp_path / "lightgbm.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.xgboost.save_model(boosted, tmp_path / "x")
        mlflow.lightgbm.save_model(light, tmp_path / "l")
    for path in sorted(tmp_path.iterdir()):
        assert [(f.path, f.what) for f in audit_path(path).findings] == []


@pytest.mark.slow
def test_torch_models_and_weights_pass(tmp_path: Path) -> None:
    import mlflow
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(3, 70), torch.nn.ReLU(), torch.nn.Linear(70, 1))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.ones(1, 3)).save(tmp_path / "script.pt")
        mlflow.pytorch.save_model(network, tmp_path / "logged", serialization_format="pickle")
    for path in sorted(tmp_path.iterdir()):
        assert [(f.path, f.rule, f.what) for f in audit_path(path).findings] == []
    assert audit_path(tmp_path / "logged").pickles >= 1
